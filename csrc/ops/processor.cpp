#include "ops/processor.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/ones.h>

#include <array>
#include <atomic>
#include <cmath>

#include "ops/timing.h"
#include "plan/plan.h"

namespace sketchlayers {
namespace {

// Whether PyTorch hands convolutions of a half type to oneDNN: without instructions for it, its own
// take many times as long.
bool has_onednn(const char* question) {
  const auto op = c10::Dispatcher::singleton().findSchema({question, ""});
  return op && op->typed<bool()>().call();
}

// A convolution that fits into caches, and how it is planned.
constexpr int64_t kBatch = 2, kChannels = 64, kSize = 28, kKernel = 3;

PlanProblem reference(Processor processor, Precision precision) {
  PlanProblem problem;
  problem.batch = kBatch;
  problem.in_channels = problem.out_channels = kChannels;
  problem.kernel_h = problem.kernel_w = kKernel;
  problem.input_pixels = problem.output_pixels = kSize * kSize;
  problem.processor = processor;
  problem.precision = precision;
  problem.channels_last = problem.weight_ready = true;
  return problem;
}

double measured_slowdown(Precision precision) {
  const at::ScalarType type = precision == Precision::kFloat16 ? at::kHalf : at::kBFloat16;
  const at::AutoDispatchBelowAutograd below_autograd;
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const auto ones = [](at::IntArrayRef sizes) {
    return at::ones(
        sizes, at::TensorOptions().dtype(at::kFloat).memory_format(at::MemoryFormat::ChannelsLast));
  };
  const at::Tensor x = ones({kBatch, kChannels, kSize, kSize});
  const at::Tensor weight = ones({kChannels, kChannels, kKernel, kKernel});
  const at::Tensor half_x = x.to(type), half_weight = weight.to(type);
  const auto conv = [](const at::Tensor& input, const at::Tensor& filter) {
    at::conv2d(input, filter, std::nullopt, 1, at::IntArrayRef{kKernel / 2, kKernel / 2});
  };
  const auto [single, half] =
      paired_times<2>({[&] { conv(x, weight); }, [&] { conv(half_x, half_weight); }});
  const double expected = plan(reference(Processor::kOneDnn, precision)).folded_seconds /
                          plan(reference(Processor::kCpu, Precision::kFloat32)).folded_seconds;
  return std::exp2(std::round(2 * std::log2(half / single / expected)) / 2);
}

}  // namespace

bool multiplies_bfloat16() {
  static const bool answer = at::native::cpublas::could_pack(at::kBFloat16);
  return answer;
}

Processor cpu_for(Precision precision) {
  if (precision == Precision::kBFloat16) {
    static const bool onednn = has_onednn("mkldnn::_is_mkldnn_bf16_supported");
    return multiplies_bfloat16() ? Processor::kAmx : onednn ? Processor::kOneDnn : Processor::kCpu;
  }
  if (precision == Precision::kFloat16) {
    static const bool onednn = has_onednn("mkldnn::_is_mkldnn_fp16_supported");
    return onednn ? Processor::kOneDnn : Processor::kCpu;
  }
  return Processor::kCpu;
}

double dense_slowdown(Processor processor, Precision precision) {
  if (processor != Processor::kOneDnn) return 1;
  // 0 where it has not been measured yet; the first to measure it counts.
  static std::array<std::atomic<double>, 2> known{};
  std::atomic<double>& own = known[precision == Precision::kFloat16 ? 1 : 0];
  if (own.load() == 0 && !may_time()) return 1;
  double before = 0;
  if (own.load() == 0) own.compare_exchange_strong(before, measured_slowdown(precision));
  return own.load();
}

}  // namespace sketchlayers
