// The factored fully connected layer: two GEMMs, x -> z = [S1; B] x -> [c A, c S2] z.
#include "composite/sk_linear.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <torch/library.h>

#include "composite/factors.h"

namespace sketchlayers {
namespace {

at::Tensor input_signs(const at::Tensor& u2, at::ScalarType type, const Sketch& sketch) {
  return unpack_signs(u2, sketch.in_channels, 0, type, sketch.u2_scale).squeeze(0);
}

at::Tensor stacked_output_factor(const at::Tensor& s2, const at::Tensor& u1, const Sketch& sketch) {
  return output_factor(s2.unsqueeze(0), u1, sketch).squeeze(0);
}

}  // namespace

at::Tensor sk_linear_composed(const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
                              const at::Tensor& u1, const at::Tensor& u2,
                              const std::optional<at::Tensor>& bias, const Sketch& sketch) {
  const at::Tensor right = at::cat({s1, input_signs(u2, s1.scalar_type(), sketch)}, 0);
  return at::linear(at::linear(input, right), stacked_output_factor(s2, u1, sketch), bias);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> sk_linear_composed_backward(
    const at::Tensor& grad, const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
    const at::Tensor& u1, const at::Tensor& u2, std::array<bool, 3> output_mask,
    const Sketch& sketch) {
  const at::Tensor rows = grad.reshape({-1, sketch.out_channels});
  const at::Tensor x = input.reshape({-1, sketch.in_channels});
  const at::Tensor b = input_signs(u2, s1.scalar_type(), sketch);
  at::Tensor grad_input = input.new_empty({0});
  at::Tensor grad_s1 = s1.new_empty({0});
  at::Tensor grad_s2 = s2.new_empty({0});
  if (output_mask[0] || output_mask[1]) {
    const at::Tensor inner = at::matmul(rows, stacked_output_factor(s2, u1, sketch));
    if (output_mask[0]) grad_input = at::matmul(inner, at::cat({s1, b}, 0)).view_as(input);
    if (output_mask[1]) grad_s1 = at::matmul(inner.narrow(1, 0, sketch.rank).t(), x);
  }
  if (output_mask[2]) grad_s2 = at::matmul(rows.t(), at::linear(x, b * sketch.scale));
  return {grad_input, grad_s1, grad_s2};
}

namespace {

at::Tensor sk_linear_factored_kernel(const at::Tensor& input, const at::Tensor& s1,
                                     const at::Tensor& s2, const at::Tensor& u1,
                                     const at::Tensor& u2, const std::optional<at::Tensor>& bias,
                                     int64_t num_sketches, std::optional<double> scale) {
  const Sketch sketch =
      check_factored_linear(input, s1, s2, u1, u2, bias, {"spatial", num_sketches, scale});
  return sk_linear_composed(input, s1, s2, u1, u2, bias, sketch);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> sk_linear_factored_backward_kernel(
    const at::Tensor& grad, const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
    const at::Tensor& u1, const at::Tensor& u2, std::array<bool, 3> output_mask,
    int64_t num_sketches, std::optional<double> scale) {
  const Sketch sketch =
      check_factored_linear_backward(grad, input, s1, s2, u1, u2, {"spatial", num_sketches, scale});
  return sk_linear_composed_backward(grad, input, s1, s2, u1, u2, output_mask, sketch);
}

TORCH_LIBRARY_IMPL(sketchlayers, CompositeExplicitAutograd, m) {
  m.impl("sk_linear_factored", TORCH_FN(sk_linear_factored_kernel));
  m.impl("sk_linear_factored_backward", TORCH_FN(sk_linear_factored_backward_kernel));
}

}  // namespace
}  // namespace sketchlayers
