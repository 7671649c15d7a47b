// The factored fully connected layer: two GEMMs, x -> z = [S1; B] x -> [c A, c S2] z, or for
// several blocks two GEMMs with signs and two batches of smaller ones.
#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <torch/library.h>

#include "composite/composed.h"
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

  BlockFactors(const SketchTensors& tensors, const Sketch& sketch)
      : s1(columns_by_block(tensors.s1.unsqueeze(0), sketch)),
        s2(rows_by_block((tensors.s2 * sketch.scale).unsqueeze(0), sketch)),
        a(unpack_signs(tensors.u1, sketch.out_channels, 0, s1.scalar_type(),
                       sketch.scale * sketch.u1_scale)
              .squeeze(0)),
        b(input_signs(tensors.u2, s1.scalar_type(), sketch)) {}
};

at::Tensor linear_by_blocks(const LinearCall& call, const Sketch& sketch) {
  const BlockFactors factors(call.tensors, sketch);
  const at::Tensor x = call.input.reshape({-1, sketch.in_channels});
  const at::Tensor filtered = joined(at::bmm(by_block(x, sketch), factors.s1.transpose(1, 2)));
  const at::Tensor mixed = by_block(at::linear(x, factors.b), sketch);
  const at::Tensor second = joined(at::bmm(mixed, factors.s2.transpose(1, 2)));
  auto sizes = call.input.sizes().vec();
  sizes.back() = sketch.out_channels;
  return at::linear(filtered, factors.a.t(), call.bias).add_(second).reshape(sizes);
}

LayerGradients linear_by_blocks_backward(const LinearBackwardCall& call, const Sketch& sketch) {
  const auto& [grad, input, tensors, output_mask, arguments] = call;
  const auto& [s1, s2, u1, u2] = tensors;
  const BlockFactors factors(tensors, sketch);
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

at::Tensor sk_linear_composed(const LinearCall& call) {
  const Sketch sketch = check_call(call);
  if (sketch.blocks > 1) return linear_by_blocks(call, sketch);
  const auto& [s1, s2, u1, u2] = call.tensors;
  const at::Tensor right = at::cat({s1, input_signs(u2, s1.scalar_type(), sketch)}, 0);
  return at::linear(at::linear(call.input, right), stacked_output_factor(s2, u1, sketch),
                    call.bias);
}

LayerGradients sk_linear_composed_backward(const LinearBackwardCall& call) {
  const Sketch sketch = check_call(call);
  if (sketch.blocks > 1) return linear_by_blocks_backward(call, sketch);
  const auto& [grad, input, tensors, output_mask, arguments] = call;
  const auto& [s1, s2, u1, u2] = tensors;
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

TORCH_LIBRARY_IMPL(sketchlayers, CompositeExplicitAutograd, m) {
  m.impl("sk_linear_factored", TORCH_FN(LinearCall::unpacked<sk_linear_composed>));
  m.impl("sk_linear_factored_backward",
         TORCH_FN(LinearBackwardCall::unpacked<sk_linear_composed_backward>));
}

}  // namespace sketchlayers
