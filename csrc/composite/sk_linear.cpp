// The factored fully connected layer: two GEMMs, x -> z = [S1; B] x -> [c A, c S2] z, or for
// several blocks two GEMMs with signs and two batches of smaller ones.
#include "composite/sk_linear.h"

#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <torch/library.h>

#include "composite/blocks.h"
#include "composite/factors.h"

namespace sketchlayers {
namespace {

at::Tensor input_signs(const at::Tensor& u2, at::ScalarType type, const Sketch& sketch) {
  return unpack_signs(u2, sketch.in_channels, 0, type, sketch.u2_scale).squeeze(0);
}

at::Tensor stacked_output_factor(const at::Tensor& s2, const at::Tensor& u1, const Sketch& sketch) {
  return output_factor(s2.unsqueeze(0), u1, sketch).squeeze(0);
}

// Rows of features (rows, blocks * features) as a batch (blocks, rows, features), and back.
at::Tensor by_block(const at::Tensor& rows, const Sketch& sketch) {
  return rows.unflatten(1, {sketch.blocks, -1}).transpose(0, 1);
}
at::Tensor joined(const at::Tensor& blocks) { return blocks.transpose(0, 1).flatten(1, 2); }

// More than one block: S1 takes each block of the inputs, and S2 makes each block of the outputs,
// for itself.
struct BlockFactors {
  at::Tensor s1;  // (blocks, rank, block inputs)
  at::Tensor s2;  // (blocks, block outputs, rank), times c
  at::Tensor a;   // (blocks * rank, d1), times c
  at::Tensor b;   // (blocks * rank, d2)

  BlockFactors(const at::Tensor& first, const at::Tensor& second, const at::Tensor& u1,
               const at::Tensor& u2, const Sketch& sketch)
      : s1(columns_by_block(first.unsqueeze(0), sketch)),
        s2(rows_by_block((second * sketch.scale).unsqueeze(0), sketch)),
        a(unpack_signs(u1, sketch.out_channels, 0, first.scalar_type(),
                       sketch.scale * sketch.u1_scale)
              .squeeze(0)),
        b(input_signs(u2, first.scalar_type(), sketch)) {}
};

at::Tensor linear_by_blocks(const at::Tensor& input, const BlockFactors& factors,
                            const std::optional<at::Tensor>& bias, const Sketch& sketch) {
  const at::Tensor x = input.reshape({-1, sketch.in_channels});
  const at::Tensor filtered = joined(at::bmm(by_block(x, sketch), factors.s1.transpose(1, 2)));
  const at::Tensor mixed = by_block(at::linear(x, factors.b), sketch);
  const at::Tensor second = joined(at::bmm(mixed, factors.s2.transpose(1, 2)));
  auto sizes = input.sizes().vec();
  sizes.back() = sketch.out_channels;
  return at::linear(filtered, factors.a.t(), bias).add_(second).reshape(sizes);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> linear_by_blocks_backward(
    const at::Tensor& grad, const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
    const BlockFactors& factors, std::array<bool, 3> output_mask, const Sketch& sketch) {
  const at::Tensor rows = grad.reshape({-1, sketch.out_channels});
  const at::Tensor x = input.reshape({-1, sketch.in_channels});
  at::Tensor grad_input = input.new_empty({0});
  at::Tensor grad_s1 = s1.new_empty({0});
  at::Tensor grad_s2 = s2.new_empty({0});
  const at::Tensor filtered = by_block(at::linear(rows, factors.a), sketch);
  const at::Tensor outputs = by_block(rows, sketch);
  if (output_mask[0]) {
    grad_input = joined(at::bmm(filtered, factors.s1));
    const at::Tensor mixed = joined(at::bmm(outputs, factors.s2));
    grad_input = grad_input.add(at::matmul(mixed, factors.b)).reshape(input.sizes());
  }
  if (output_mask[1]) {
    const at::Tensor blocks = at::bmm(filtered.transpose(1, 2), by_block(x, sketch));
    grad_s1 = joined_columns(blocks, sketch).reshape(s1.sizes());
  }
  if (output_mask[2]) {
    const at::Tensor mixed = by_block(at::linear(x, factors.b * sketch.scale), sketch);
    grad_s2 = at::bmm(outputs.transpose(1, 2), mixed).reshape(s2.sizes());
  }
  return {grad_input, grad_s1, grad_s2};
}

}  // namespace

at::Tensor sk_linear_composed(const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
                              const at::Tensor& u1, const at::Tensor& u2,
                              const std::optional<at::Tensor>& bias, const Sketch& sketch) {
  if (sketch.blocks > 1) {
    return linear_by_blocks(input, BlockFactors(s1, s2, u1, u2, sketch), bias, sketch);
  }
  const at::Tensor right = at::cat({s1, input_signs(u2, s1.scalar_type(), sketch)}, 0);
  return at::linear(at::linear(input, right), stacked_output_factor(s2, u1, sketch), bias);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> sk_linear_composed_backward(
    const at::Tensor& grad, const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
    const at::Tensor& u1, const at::Tensor& u2, std::array<bool, 3> output_mask,
    const Sketch& sketch) {
  if (sketch.blocks > 1) {
    return linear_by_blocks_backward(grad, input, s1, s2, BlockFactors(s1, s2, u1, u2, sketch),
                                     output_mask, sketch);
  }
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
