#include "ops/benchmark.h"

#include <ATen/Context.h>
#include <ATen/SavedTensorHooks.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/ones_like.h>

#include <array>
#include <vector>

#include "ops/operands.h"
#include "ops/timing.h"
#include "plan/measured_times.h"

namespace sketchlayers {
namespace {

bool is_plain(const at::Tensor& tensor) {
  return tensor.is_cpu() && !tensor.key_set().has(c10::DispatchKey::Python);
}

bool may_time_calls(const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2) {
  return may_time() && is_plain(input) && is_plain(s1) && is_plain(s2) &&
         !at::globalContext().deterministicAlgorithms() && !under_transform({input, s1, s2});
}

// What is timed saves no tensors for anybody: checkpoints count those of the call itself.
class NoSavedTensorHooks {
 public:
  NoSavedTensorHooks() { at::SavedTensorDefaultHooks::set_tls_state({}); }
  ~NoSavedTensorHooks() { at::SavedTensorDefaultHooks::set_tls_state(before_); }
  NoSavedTensorHooks(const NoSavedTensorHooks&) = delete;
  NoSavedTensorHooks& operator=(const NoSavedTensorHooks&) = delete;

 private:
  const at::impl::SavedTensorDefaultHooksTLS before_ = at::SavedTensorDefaultHooks::get_tls_state();
};

at::Tensor leaf(const at::Tensor& tensor) {
  return tensor.detach().requires_grad_(tensor.requires_grad());
}

PathTimes time_training(const PathCalls& calls, const at::Tensor& input, const at::Tensor& s1,
                        const at::Tensor& s2) {
  const NoSavedTensorHooks no_hooks;
  const auto step = [&](const PathCalls::Layer& layer) {
    const at::Tensor x = leaf(input), first = leaf(s1), second = leaf(s2);
    std::vector<at::Tensor> wanted;  // not the bias, whose gradient is the caller's
    for (const at::Tensor& tensor : {x, first, second}) {
      if (tensor.requires_grad()) wanted.push_back(tensor);
    }
    const at::Tensor output = layer(x, first, second);
    output.backward(at::ones_like(output), /*keep_graph=*/false, /*create_graph=*/false, wanted);
  };
  const PathCalls::Layer folded = [&](const at::Tensor& x, const at::Tensor& first,
                                      const at::Tensor& second) {
    return calls.dense(x, calls.form(first, second));
  };
  const auto times = paired_times<2>({[&] { step(calls.factored); }, [&] { step(folded); }});
  return {times[0], times[1], 0};
}

PathTimes time_inference(const PathCalls& calls, const at::Tensor& input, const at::Tensor& s1,
                         const at::Tensor& s2) {
  const at::NoGradGuard no_grad;
  at::Tensor weight;
  const auto [form, dense, factored] =
      paired_times<3>({[&] { weight = calls.form(s1, s2); }, [&] { calls.dense(input, weight); },
                       [&] { calls.factored(input, s1, s2); }});
  return {factored, dense, form};
}

}  // namespace

bool wants_benchmark(const PlanProblem& problem, const at::Tensor& input, const at::Tensor& s1,
                     const at::Tensor& s2) {
  if (!benchmark_enabled()) return false;
  const bool known = problem.batch && problem.input_pixels && problem.output_pixels;
  return known && may_time_calls(input, s1, s2) && !measured_times(problem);
}

void benchmark_paths(const PlanProblem& problem, const PathCalls& calls, const at::Tensor& input,
                     const at::Tensor& s1, const at::Tensor& s2) {
  record_times(problem, problem.training ? time_training(calls, input, s1, s2)
                                         : time_inference(calls, input, s1, s2));
}

}  // namespace sketchlayers
