#include "ops/sk_linear.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/linear.h>
#include <torch/library.h>

#include "ops/checks.h"
#include "ops/operands.h"
#include "ops/sk_weight.h"

namespace sketchlayers {

at::Tensor sk_linear(const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
                     const at::Tensor& u1, const at::Tensor& u2,
                     const std::optional<at::Tensor>& bias, const SketchArguments& arguments,
                     const std::string& path) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("sketchlayers::sk_linear", "")
          .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                            const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                            int64_t, std::optional<double>, const std::optional<at::Tensor>&,
                            const std::optional<at::Tensor>&, c10::string_view)>();
  return op.call(input, s1, s2, u1, u2, bias, arguments.num_sketches, arguments.scale,
                 arguments.base, arguments.frame, path);
}

at::Tensor sk_linear_factored(const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
                              const at::Tensor& u1, const at::Tensor& u2,
                              const std::optional<at::Tensor>& bias,
                              const SketchArguments& arguments) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("sketchlayers::sk_linear_factored", "")
          .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                            const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                            int64_t, std::optional<double>)>();
  return op.call(input, s1, s2, u1, u2, bias, arguments.num_sketches, arguments.scale);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> sk_linear_factored_backward(
    const at::Tensor& grad, const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
    const at::Tensor& u1, const at::Tensor& u2, std::array<bool, 3> output_mask,
    const SketchArguments& arguments) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("sketchlayers::sk_linear_factored_backward", "")
                             .typed<std::tuple<at::Tensor, at::Tensor, at::Tensor>(
                                 const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                 const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                 std::array<bool, 3>, int64_t, std::optional<double>)>();
  return op.call(grad, input, s1, s2, u1, u2, output_mask, arguments.num_sketches, arguments.scale);
}

namespace {

std::vector<c10::SymInt> output_sizes(const at::Tensor& input, const Sketch& sketch) {
  auto sizes = input.sym_sizes().vec();
  sizes.back() = sketch.out_channels;
  return sizes;
}

}  // namespace

void check_linear_input(const char* op, const at::Tensor& input,
                        const std::optional<at::Tensor>& bias, const at::Tensor& s1,
                        const Sketch& sketch) {
  TORCH_CHECK(sketch.is_linear, op, ": s1 and s2 must have 2 dimensions (got s1 ", s1.sym_sizes(),
              ")");
  TORCH_CHECK(input.dim() >= 1 && input.sym_size(-1) == sketch.in_channels, op,
              ": the last dimension of input must be ", sketch.in_channels, " (got input ",
              input.sym_sizes(), ")");
  check_operand(op, "input", input, s1);
  check_bias(op, bias, s1, sketch);
  check_result_sizes(op, output_sizes(input, sketch));
}

void check_linear_gradient(const char* op, const at::Tensor& grad, const at::Tensor& input,
                           const at::Tensor& s1, const Sketch& sketch) {
  const auto expected = output_sizes(input, sketch);
  TORCH_CHECK(grad.sym_sizes() == c10::SymIntArrayRef(expected), op,
              ": grad must have the shape of the output, ", c10::SymIntArrayRef(expected), " (got ",
              grad.sym_sizes(), ")");
  check_operand(op, "grad", grad, s1);
}

Sketch check_factored_linear(const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
                             const at::Tensor& u1, const at::Tensor& u2,
                             const std::optional<at::Tensor>& bias,
                             const SketchArguments& arguments) {
  constexpr const char* kName = "sk_linear_factored";
  const Sketch sketch = check_sketch(kName, s1, s2, u1, u2, arguments);
  check_linear_input(kName, input, bias, s1, sketch);
  return sketch;
}

Sketch check_factored_linear_backward(const at::Tensor& grad, const at::Tensor& input,
                                      const at::Tensor& s1, const at::Tensor& s2,
                                      const at::Tensor& u1, const at::Tensor& u2,
                                      const SketchArguments& arguments) {
  constexpr const char* kName = "sk_linear_factored_backward";
  const Sketch sketch = check_sketch(kName, s1, s2, u1, u2, arguments);
  check_linear_input(kName, input, std::nullopt, s1, sketch);
  check_linear_gradient(kName, grad, input, s1, sketch);
  return sketch;
}

namespace {

Path plan_path(const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
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
  return plan(problem).factored ? Path::kFactored : Path::kFolded;
}

at::Tensor sk_linear_composite(const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
                               const at::Tensor& u1, const at::Tensor& u2,
                               const std::optional<at::Tensor>& bias, int64_t num_sketches,
                               std::optional<double> scale, const std::optional<at::Tensor>& base,
                               const std::optional<at::Tensor>& frame, c10::string_view path) {
  const SketchArguments arguments{"spatial", num_sketches, scale, base, frame};
  Path chosen = parse_path("sk_linear", std::string(path), arguments,
                           {input, s1, s2, bias.value_or(at::Tensor())});
  const Sketch sketch = check_sketch("sk_linear", s1, s2, u1, u2, arguments);
  check_linear_input("sk_linear", input, bias, s1, sketch);
  if (chosen == Path::kAuto) chosen = plan_path(input, s1, s2, sketch);
  if (chosen == Path::kFactored) return sk_linear_factored(input, s1, s2, u1, u2, bias, arguments);
  return at::linear(input, sk_weight(s1, s2, u1, u2, arguments), bias);
}

TORCH_LIBRARY_FRAGMENT(sketchlayers, m) {
  m.def(
      "sk_linear(Tensor input, Tensor s1, Tensor s2, Tensor u1, Tensor u2, Tensor? bias=None, *,"
      " int num_sketches=1, float? scale=None, Tensor? base=None, Tensor? frame=None,"
      " str path='auto') -> Tensor",
      {at::Tag::pt2_compliant_tag});
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

TORCH_LIBRARY_IMPL(sketchlayers, CompositeImplicitAutograd, m) {
  m.impl("sk_linear", TORCH_FN(sk_linear_composite));
}

// vmap: the parts have batching rules, the whole has none.
TORCH_LIBRARY_IMPL(sketchlayers, FuncTorchBatchedDecomposition, m) {
  m.impl("sk_linear", TORCH_FN(sk_linear_composite));
}

}  // namespace
}  // namespace sketchlayers
