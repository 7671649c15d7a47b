#include "ops/sk_conv2d.h"

#include <ATen/ops/conv2d.h>
#include <torch/library.h>

#include "ops/benchmark.h"
#include "ops/checks.h"
#include "ops/operands.h"
#include "ops/operator.h"
#include "ops/sk_weight.h"

namespace sketchlayers {

at::Tensor sk_conv2d_factored(const ConvCall& call) {
  static const auto op = find_operator<ConvCall>();
  const auto& [s1, s2, u1, u2] = call.tensors;
  const auto& [stride, padding, dilation, groups] = call.conv;
  return op.call(call.input, s1, s2, u1, u2, call.bias, stride, padding, dilation, groups,
                 call.arguments.mixing, call.arguments.num_sketches, call.arguments.scale);
}

LayerGradients sk_conv2d_factored_backward(const ConvBackwardCall& call) {
  static const auto op = find_operator<ConvBackwardCall>();
  const auto& [s1, s2, u1, u2] = call.tensors;
  const auto& [stride, padding, dilation, groups] = call.conv;
  return op.call(call.grad, call.input, s1, s2, u1, u2, call.output_mask, stride, padding, dilation,
                 groups, call.arguments.mixing, call.arguments.num_sketches, call.arguments.scale);
}

namespace {

std::vector<c10::SymInt> check_conv_input(const char* op, const at::Tensor& input,
                                          const std::optional<at::Tensor>& bias,
                                          const at::Tensor& s1, const Sketch& sketch,
                                          const ConvArguments& conv) {
  TORCH_CHECK(!sketch.is_linear, op, ": s1 and s2 must have 4 dimensions (got 2)");
  const int64_t channels = sketch.groups * sketch.in_channels;
  const int64_t outputs = sketch.groups * sketch.out_channels;
  check_conv_arguments(op, conv, channels, outputs);
  TORCH_CHECK(conv.groups == sketch.groups, op,
              ": groups must be the first size of u1 (got groups=", conv.groups, " and ",
              sketch.groups, ")");
  TORCH_CHECK(input.dim() == 4 && input.sym_size(1) == channels, op,
              ": input must have shape (batch, ", channels, ", height, width) (got ",
              input.sym_sizes(), ")");
  check_operand(op, "input", input, s1);
  check_bias(op, bias, s1, sketch);
  return conv_output_sizes(op, input, outputs, sketch.kernel_h, sketch.kernel_w, conv);
}

}  // namespace

CheckedConv check_call(const ConvCall& call) {
  const Sketch sketch = check_sketch(call.kName, call.tensors, call.arguments);
  return {sketch,
          check_conv_input(call.kName, call.input, call.bias, call.tensors.s1, sketch, call.conv)};
}

CheckedConv check_call(const ConvBackwardCall& call) {
  const Sketch sketch = check_sketch(call.kName, call.tensors, call.arguments);
  auto sizes =
      check_conv_input(call.kName, call.input, std::nullopt, call.tensors.s1, sketch, call.conv);
  check_gradient(call.kName, call.grad, sizes, call.tensors.s1);
  return {sketch, std::move(sizes)};
}

namespace {

PlanProblem plan_problem(const at::Tensor& input, const std::vector<c10::SymInt>& output_sizes,
                         const at::Tensor& s1, const at::Tensor& s2, const Sketch& sketch) {
  PlanProblem problem;
  problem.batch = input.sym_size(0).maybe_as_int();
  problem.in_channels = sketch.groups * sketch.in_channels;
  problem.out_channels = sketch.groups * sketch.out_channels;
  problem.groups = sketch.groups;
  problem.kernel_h = sketch.kernel_h;
  problem.kernel_w = sketch.kernel_w;
  problem.input_pixels = product_if_known(input.sym_size(2), input.sym_size(3));
  problem.output_pixels = product_if_known(output_sizes[2], output_sizes[3]);
  problem.sketch_rank = sketch.rank;
  problem.blocks = sketch.blocks;
  problem.mixing = sketch.mixing;
  describe_call(problem, input, s1, s2);
  return problem;
}

at::Tensor sk_conv2d_composite(const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
                               const at::Tensor& u1, const at::Tensor& u2,
                               const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                               at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                               c10::string_view mixing, int64_t num_sketches,
                               std::optional<double> scale, const std::optional<at::Tensor>& frame,
                               c10::string_view path) {
  constexpr const char* kName = "sk_conv2d";
  const SketchArguments arguments{std::string(mixing), num_sketches, scale, frame};
  const ConvArguments conv{stride.vec(), padding.vec(), dilation.vec(), groups};
  Path chosen =
      parse_path(kName, std::string(path), arguments, {input, s1, s2, bias.value_or(at::Tensor())});
  const Sketch sketch = check_sketch(kName, {s1, s2, u1, u2}, arguments);
  const int64_t channels = sketch.groups * sketch.in_channels;
  TORCH_CHECK((input.dim() == 3 || input.dim() == 4) && input.sym_size(-3) == channels, kName,
              ": input must have shape (batch, ", channels,
              ", height, width), or no batch dimension (got ", input.sym_sizes(), ")");
  const bool batched = input.dim() == 4;
  const at::Tensor batch = batched ? input : input.unsqueeze(0);
  const auto output_sizes = check_conv_input(kName, batch, bias, s1, sketch, conv);
  const auto factored = [&](const at::Tensor& x, const at::Tensor& first,
                            const at::Tensor& second) {
    return sk_conv2d_factored({x, {first, second, u1, u2}, bias, conv, arguments});
  };
  const auto form = [&](const at::Tensor& first, const at::Tensor& second) {
    return sk_weight(first, second, u1, u2, arguments);
  };
  const auto dense = [&](const at::Tensor& x, const at::Tensor& weight) {
    return at::conv2d(x, weight, bias, stride, padding, effective_dilation(conv, weight), groups);
  };
  if (chosen == Path::kAuto) {
    const PlanProblem problem = plan_problem(batch, output_sizes, s1, s2, sketch);
    if (wants_benchmark(problem, batch, s1, s2)) {
      benchmark_paths(problem, {factored, form, dense}, batch, s1, s2);
    }
    chosen = plan(problem).factored ? Path::kFactored : Path::kFolded;
  }
  const at::Tensor output =
      chosen == Path::kFactored ? factored(batch, s1, s2) : dense(batch, form(s1, s2));
  return batched ? output : output.squeeze(0);
}

TORCH_LIBRARY_FRAGMENT(sketchlayers, m) {
  m.def(
      "sk_conv2d(Tensor input, Tensor s1, Tensor s2, Tensor u1, Tensor u2, Tensor? bias=None,"
      " int[2] stride=1, int[2] padding=0, int[2] dilation=1, int groups=1, *,"
      " str mixing='spatial', int num_sketches=1, float? scale=None,"
      " Tensor? frame=None, str path='auto') -> Tensor",
      TORCH_FN(sk_conv2d_composite), {at::Tag::pt2_compliant_tag});
  // vmap: the parts have batching rules, the whole has none.
  m.impl("sk_conv2d", torch::dispatch(c10::DispatchKey::FuncTorchBatchedDecomposition,
                                      TORCH_FN(sk_conv2d_composite)));
  m.def(
      "sk_conv2d_factored(Tensor input, Tensor s1, Tensor s2, Tensor u1, Tensor u2,"
      " Tensor? bias=None, int[2] stride=1, int[2] padding=0, int[2] dilation=1, int groups=1, *,"
      " str mixing='spatial', int num_sketches=1, float? scale=None) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "sk_conv2d_factored_backward(Tensor grad, Tensor input, Tensor s1, Tensor s2, Tensor u1,"
      " Tensor u2, bool[3] output_mask, int[2] stride=1, int[2] padding=0, int[2] dilation=1,"
      " int groups=1, *, str mixing='spatial', int num_sketches=1, float? scale=None)"
      " -> (Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
}

}  // namespace

at::Tensor sk_conv2d(const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
                     const at::Tensor& u1, const at::Tensor& u2,
                     const std::optional<at::Tensor>& bias, const ConvArguments& conv,
                     const SketchArguments& arguments, const std::string& path) {
  static const auto op = find_operator<decltype(sk_conv2d_composite)>("sk_conv2d");
  return op.call(input, s1, s2, u1, u2, bias, conv.stride, conv.padding, conv.dilation, conv.groups,
                 arguments.mixing, arguments.num_sketches, arguments.scale, arguments.frame, path);
}

}  // namespace sketchlayers
