// sk_weight and its adjoint from ATen's batched GEMMs and unpacked signs: one code for every
// device.
#include "ops/sk_weight.h"

#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/matmul.h>
#include <torch/library.h>

#include "composite/composed.h"
#include "composite/factors.h"
#include "ops/sign_matrix.h"

namespace sketchlayers {
namespace {

// c A^T: (groups * blocks, rank, d1/groups).
at::Tensor scaled_a(const at::Tensor& u1, at::ScalarType type, const Sketch& sketch) {
  return signs_by_block(u1, sketch.out_channels, type, sketch.scale * sketch.u1_scale, sketch);
}

// c B: (groups * blocks, second_rank, n), or d2/groups columns for channel mixing.
at::Tensor scaled_b(const at::Tensor& u2, at::ScalarType type, const Sketch& sketch) {
  const int64_t columns = sketch.mixes_space() ? sketch.inputs() : sketch.in_channels;
  return signs_by_block(u2, columns, type, sketch.scale * sketch.u2_scale, sketch);
}

// The weight or its gradient, (groups, d1/groups, n), times the signs of the frame, if there is
// one.
at::Tensor framed(const at::Tensor& weight, const SketchArguments& arguments) {
  if (!arguments.frame) return weight;
  return weight * unpack_signs(*arguments.frame, weight.size(2), 0, weight.scalar_type());
}

}  // namespace

at::Tensor sk_weight_composition(const WeightCall& call) {
  const Sketch sketch = check_call(call);
  const auto& [s1, s2, u1, u2] = call.tensors;
  const auto type = compute_type(s1.scalar_type());
  const at::Tensor first =
      columns_by_block(s1.to(type).reshape({sketch.groups, sketch.rank, -1}), sketch);
  const at::Tensor second = s2.to(type).reshape(
      {sketch.groups * sketch.blocks, sketch.block_outputs(), sketch.rank * sketch.positions()});
  const at::Tensor a = scaled_a(u1, type, sketch).transpose(1, 2);
  const at::Tensor b = scaled_b(u2, type, sketch);
  at::Tensor weight;
  if (sketch.mixes_space() && sketch.blocks == 1) {
    weight = at::matmul(at::cat({a, second}, 2), at::cat({first, b}, 1));
  } else if (sketch.mixes_space()) {
    weight =
        joined_columns(at::matmul(a, first), sketch) + joined_rows(at::matmul(second, b), sketch);
  } else {
    weight = joined_columns(at::matmul(a, first), sketch);
    weight = weight + at::matmul(rows_by_position(second, sketch.positions()), b)
                          .reshape({sketch.groups, sketch.out_channels, sketch.positions(),
                                    sketch.in_channels})
                          .transpose(2, 3)
                          .reshape(weight.sizes());
  }
  return framed(weight, call.arguments).reshape(sketch.weight_sizes()).to(s1.scalar_type());
}

at::Tensor sk_weight_composed(const WeightCall& call) {
  const at::Tensor& s1 = call.tensors.s1;
  return in_format(sk_weight_composition(call), common_memory_format(s1, s1));
}

WeightGradients sk_weight_composed_backward(const WeightBackwardCall& call) {
  const Sketch sketch = check_call(call);
  const auto type = compute_type(call.grad.scalar_type());
  const at::Tensor grad = framed(
      call.grad.contiguous().view({sketch.groups, sketch.out_channels, sketch.inputs()}).to(type),
      call.arguments);
  const at::Tensor grad_s1 = joined_columns(
      at::bmm(scaled_a(call.u1, type, sketch), columns_by_block(grad, sketch)), sketch);
  const at::Tensor b = scaled_b(call.u2, type, sketch).transpose(1, 2);
  const at::Tensor rows = rows_by_block(grad, sketch);
  const at::Tensor grad_s2 = sketch.mixes_space()
                                 ? at::bmm(rows, b)
                                 : at::bmm(rows_by_position(rows, sketch.positions()), b)
                                       .reshape({-1, sketch.positions(), sketch.rank})
                                       .transpose(1, 2);
  const auto finished = [&](const at::Tensor& result, const std::vector<int64_t>& sizes) {
    return result.reshape(sizes).to(call.grad.scalar_type()).contiguous();
  };
  return {finished(grad_s1, sketch.s1_sizes()), finished(grad_s2, sketch.s2_sizes())};
}

TORCH_LIBRARY_IMPL(sketchlayers, CompositeExplicitAutograd, m) {
  m.impl("sk_weight", TORCH_FN(WeightCall::unpacked<sk_weight_composed>));
  m.impl("sk_weight_backward", TORCH_FN(WeightBackwardCall::unpacked<sk_weight_composed_backward>));
}

// vmap over factors.
TORCH_LIBRARY_IMPL(sketchlayers, FuncTorchBatchedDecomposition, m) {
  m.impl("sk_weight", TORCH_FN(WeightCall::unpacked<sk_weight_composition>));
}

}  // namespace sketchlayers
