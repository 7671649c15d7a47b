// What the LibTorch modules make, compute and learn, for test_parity.py to compare with Python.
//
//   parity JOBS RESULTS     files of torch.save: a list of dicts; for each a tuple of pairs
#include <ATen/ATen.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "sketchlayers.h"

namespace {

using namespace sketchlayers::nn;
using Job = c10::Dict<c10::IValue, c10::IValue>;
using Result = std::vector<c10::IValue>;  // pairs of names and tensors

c10::IValue option(const Job& options, const std::string& name) {
  return options.contains(name) ? options.at(name) : c10::IValue();
}

torch::ExpandingArray<2> two(const c10::IValue& numbers) {
  const auto list = numbers.toListRef();
  return torch::ExpandingArray<2>({list[0].toInt(), list[1].toInt()});
}

template <typename Options>
Options with_sketch(Options options, const Job& given) {
  options.rank(option(given, "rank").toOptional<int64_t>());
  options.rate(option(given, "rate").toOptional<double>());
  options.seed(option(given, "seed").toOptional<int64_t>());
  options.frame(option(given, "frame").toOptional<std::string>());
  const auto scale = option(given, "scale"), signs = option(given, "signs");
  if (scale.isDouble()) options.scale(scale.toDouble());
  if (scale.isString()) options.scale(scale.toStringRef());
  if (signs.isString()) options.signs(signs.toStringRef());
  options.num_sketches(option(given, "num_sketches").toOptional<int64_t>().value_or(1));
  options.blocks(option(given, "blocks").toOptional<int64_t>().value_or(1));
  options.bias(option(given, "bias").toOptional<bool>().value_or(true));
  return options;
}

SKConv2dOptions::padding_mode_t padding_mode(const std::string& name) {
  if (name == "reflect") return torch::kReflect;
  if (name == "replicate") return torch::kReplicate;
  if (name == "circular") return torch::kCircular;
  return torch::kZeros;
}

SKConv2d make_conv(const Job& given) {
  SKConv2dOptions options(given.at("in_channels").toInt(), given.at("out_channels").toInt(),
                          two(given.at("kernel_size")));
  const auto stride = option(given, "stride"), padding = option(given, "padding");
  const auto dilation = option(given, "dilation"), mode = option(given, "padding_mode");
  const auto mixing = option(given, "mixing");
  if (!stride.isNone()) options.stride(two(stride));
  if (padding.isList()) options.padding(two(padding));
  if (padding.isString()) options.padding(torch::kSame);
  if (!dilation.isNone()) options.dilation(two(dilation));
  if (!mode.isNone()) options.padding_mode(padding_mode(mode.toStringRef()));
  if (!mixing.isNone()) options.mixing(mixing.toStringRef());
  options.groups(option(given, "groups").toOptional<int64_t>().value_or(1));
  return SKConv2d(with_sketch(options, given));
}

SKLinear make_linear(const Job& given) {
  return SKLinear(with_sketch(
      SKLinearOptions(given.at("in_features").toInt(), given.at("out_features").toInt()), given));
}

void record(Result& result, const std::string& name, const at::Tensor& tensor) {
  if (!tensor.defined()) return;
  result.push_back(c10::ivalue::Tuple::create(name, tensor.detach().clone()));
}

template <typename Layer>
Result run(Layer layer, const Job& job) {
  Result result;
  const std::vector<std::pair<const char*, at::Tensor>> made{{"s1", layer->s1},
                                                             {"s2", layer->s2},
                                                             {"bias", layer->bias},
                                                             {"seed_bits", layer->seed_bits},
                                                             {"u1", layer->u1},
                                                             {"u2", layer->u2},
                                                             {"frame_signs", layer->frame_signs}};
  for (const auto& [name, tensor] : made) record(result, name, tensor);
  layer->options.path(job.at("path").toStringRef());
  const at::Tensor input = job.at("input").toTensor();
  record(result, "in training", layer(input));
  for (int64_t step = 0; step < 3; ++step) {
    layer->zero_grad();
    layer(input).square().mean().backward();
    const at::NoGradGuard no_grad;
    for (at::Tensor& parameter : layer->parameters()) parameter.sub_(parameter.grad(), 0.1);
  }
  layer->eval();
  const at::NoGradGuard no_grad;
  record(result, "in inference", layer(input));
  record(result, "in inference again", layer(input));
  save_state_dict(*layer, job.at("save").toStringRef());
  load_state_dict(*layer, job.at("load").toStringRef());
  record(result, "after loading", layer(input));
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  TORCH_CHECK(argc == 3, "usage: parity JOBS RESULTS");
  std::ifstream in(argv[1], std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(in), {}};
  Result results;
  const c10::IValue jobs = torch::jit::pickle_load(bytes);
  for (const c10::IValue& item : jobs.toListRef()) {
    const Job job = item.toGenericDict(), given = job.at("options").toGenericDict();
    at::manual_seed(static_cast<uint64_t>(job.at("manual_seed").toInt()));
    const bool is_conv = job.at("layer").toStringRef() == "SKConv2d";
    results.push_back(c10::ivalue::Tuple::create(is_conv ? run(make_conv(given), job)
                                                         : run(make_linear(given), job)));
  }
  const std::vector<char> written =
      torch::jit::pickle_save(c10::ivalue::Tuple::create(std::move(results)));
  std::ofstream(argv[2], std::ios::binary)
      .write(written.data(), static_cast<std::streamsize>(written.size()));
}
