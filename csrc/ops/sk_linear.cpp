#include "ops/sk_linear.h"

#include <ATen/ops/linear.h>
#include <torch/library.h>

#include "ops/benchmark.h"
#include "ops/checks.h"
#include "ops/operands.h"
#include "ops/operator.h"
#include "ops/sk_weight.h"

namespace sketchlayers {

at::Tensor sk_linear_factored(const LinearCall& call) {
  static const auto op = find_operator<LinearCall>();
  const auto& [s1, s2, u1, u2] = call.tensors;
  return op.call(call.input, s1, s2, u1, u2, call.bias, call.arguments.num_sketches,
                 call.arguments.scale);
}

LayerGradients sk_linear_factored_backward(const LinearBackwardCall& call) {
  static const auto op = find_operator<LinearBackwardCall>();
  const auto& [s1, s2, u1, u2] = call.tensors;
  return op.call(call.grad, call.input, s1, s2, u1, u2, call.output_mask,
                 call.arguments.num_sketches, call.arguments.scale);
}

namespace {

std::vector<c10::SymInt> output_sizes(const at::Tensor& input, const Sketch& sketch) {
  auto sizes = input.sym_sizes().vec();
  sizes.back() = sketch.out_channels;
  return sizes;
}

Sketch check_linear(const char* op, const at::Tensor& input, const SketchTensors& tensors,
                    const std::optional<at::Tensor>& bias, const SketchArguments& arguments) {
  const at::Tensor& s1 = tensors.s1;
  const Sketch sketch = check_sketch(op, tensors, arguments);
  TORCH_CHECK(sketch.is_linear, op, ": s1 and s2 must have 2 dimensions (got s1 ", s1.sym_sizes(),
              ")");
  TORCH_CHECK(input.dim() >= 1 && input.sym_size(-1) == sketch.in_channels, op,
              ": the last dimension of input must be ", sketch.in_channels, " (got input ",
              input.sym_sizes(), ")");
  check_operand(op, "input", input, s1);
  check_bias(op, bias, s1, sketch);
  check_result_sizes(op, output_sizes(input, sketch));
  return sketch;
}

}  // namespace

Sketch check_call(const LinearCall& call) {
  return check_linear(call.kName, call.input, call.tensors, call.bias, call.arguments);
}

Sketch check_call(const LinearBackwardCall& call) {
  const Sketch sketch =
      check_linear(call.kName, call.input, call.tensors, std::nullopt, call.arguments);
  check_gradient(call.kName, call.grad, output_sizes(call.input, sketch), call.tensors.s1);
  return sketch;
}

namespace {

PlanProblem plan_problem(const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
                         const Sketch& sketch) {
  PlanProblem problem;
  problem.batch = input.sym_numel().maybe_as_int();
  if (problem.batch) *problem.batch /= sketch.in_channels;
  problem.in_channels = sketch.in_channels;
  problem.out_channels = sketch.out_channels;
  problem.sketch_rank = sketch.rank;
  problem.blocks = sketch.blocks;
  describe_call(problem, input, s1, s2);
  problem.is_linear = true;
  return problem;
}

at::Tensor sk_linear_composite(const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
                               const at::Tensor& u1, const at::Tensor& u2,
                               const std::optional<at::Tensor>& bias, int64_t num_sketches,
                               std::optional<double> scale, const std::optional<at::Tensor>& frame,
                               c10::string_view path) {
  const SketchArguments arguments{"spatial", num_sketches, scale, frame};
  Path chosen = parse_path("sk_linear", std::string(path), arguments,
                           {input, s1, s2, bias.value_or(at::Tensor())});
  const Sketch sketch = check_linear("sk_linear", input, {s1, s2, u1, u2}, bias, arguments);
  const auto factored = [&](const at::Tensor& x, const at::Tensor& first,
                            const at::Tensor& second) {
    return sk_linear_factored({x, {first, second, u1, u2}, bias, arguments});
  };
  const auto form = [&](const at::Tensor& first, const at::Tensor& second) {
    return sk_weight(first, second, u1, u2, arguments);
  };
  const auto dense = [&](const at::Tensor& x, const at::Tensor& weight) {
    return at::linear(x, weight, bias);
  };
  if (chosen == Path::kAuto) {
    const PlanProblem problem = plan_problem(input, s1, s2, sketch);
    if (wants_benchmark(problem, input, s1, s2)) {
      benchmark_paths(problem, {factored, form, dense}, input, s1, s2);
    }
    chosen = plan(problem).factored ? Path::kFactored : Path::kFolded;
  }
  return chosen == Path::kFactored ? factored(input, s1, s2) : dense(input, form(s1, s2));
}

TORCH_LIBRARY_FRAGMENT(sketchlayers, m) {
  m.def(
      "sk_linear(Tensor input, Tensor s1, Tensor s2, Tensor u1, Tensor u2, Tensor? bias=None, *,"
      " int num_sketches=1, float? scale=None, Tensor? frame=None,"
      " str path='auto') -> Tensor",
      TORCH_FN(sk_linear_composite), {at::Tag::pt2_compliant_tag});
  // vmap: the parts have batching rules, the whole has none.
  m.impl("sk_linear", torch::dispatch(c10::DispatchKey::FuncTorchBatchedDecomposition,
                                      TORCH_FN(sk_linear_composite)));
  m.def(
      "sk_linear_factored(Tensor input, Tensor s1, Tensor s2, Tensor u1, Tensor u2,"
      " Tensor? bias=None, *, int num_sketches=1, float? scale=None) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "sk_linear_factored_backward(Tensor grad, Tensor input, Tensor s1, Tensor s2, Tensor u1,"
      " Tensor u2, bool[3] output_mask, *, int num_sketches=1, float? scale=None)"
      " -> (Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
}

}  // namespace

at::Tensor sk_linear(const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
                     const at::Tensor& u1, const at::Tensor& u2,
                     const std::optional<at::Tensor>& bias, const SketchArguments& arguments,
                     const std::string& path) {
  static const auto op = find_operator<decltype(sk_linear_composite)>("sk_linear");
  return op.call(input, s1, s2, u1, u2, bias, arguments.num_sketches, arguments.scale,
                 arguments.frame, path);
}

}  // namespace sketchlayers
