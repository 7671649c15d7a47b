#include "nn/sk_linear.h"

#include <ATen/ops/linear.h>

#include "ops/benchmark.h"
#include "ops/operands.h"
#include "ops/sk_linear.h"
#include "plan/plan.h"

namespace sketchlayers::nn {

LayerSizes SKLinearImpl::checked_sizes(const SKLinearOptions& options) {
  constexpr const char* kOwner = "SKLinear";
  check_at_least(kOwner, "in_features", options.in_features(), 1);
  check_at_least(kOwner, "out_features", options.out_features(), 1);
  // Both mixings are the same without kernel positions.
  return {kOwner, options.in_features(), options.out_features(), {}, 1, options.bias(), "spatial"};
}

at::Tensor SKLinearImpl::forward(const at::Tensor& input) {
  const std::optional<at::Tensor> bias_or_none =
      bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt;
  const at::Tensor weight = kept_weight(input);
  if (weight.defined()) return at::linear(input, weight, bias_or_none);
  return sk_linear(input, s1, s2, u1, u2, bias_or_none, arguments(), options.path());
}

bool SKLinearImpl::prefers_dense(const at::Tensor& input) const {
  // The operator says what is wrong with an input that does not fit.
  if (input.dim() < 1 || input.size(-1) != options.in_features()) return false;
  if (options.path() != "auto" || options.frame()) return options.path() != "factored";
  PlanProblem problem;
  problem.batch = input.numel() / options.in_features();
  problem.in_channels = options.in_features();
  problem.out_channels = options.out_features();
  problem.sketch_rank = options.num_sketches() * rank();
  problem.blocks = options.blocks();
  problem.is_linear = true;
  problem.weight_ready = true;
  describe_call(problem, input, s1, s2);
  if (wants_benchmark(problem, input, s1, s2)) {
    sk_linear(input, s1, s2, u1, u2, std::nullopt, arguments());
  }
  return !plan(problem).factored;
}

void SKLinearImpl::pretty_print(std::ostream& stream) const {
  stream << "sketchlayers::nn::SKLinear(in_features=" << options.in_features()
         << ", out_features=" << options.out_features()
         << ", bias=" << (options.bias() ? "true" : "false") << ", ";
  print_sketch(stream);
  stream << ")";
}

}  // namespace sketchlayers::nn
