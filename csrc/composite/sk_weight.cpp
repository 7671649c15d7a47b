// sk_weight and its adjoint from ATen's batched GEMMs and unpacked tiles of signs: one code for
// every device.
#include "ops/sk_weight.h"

#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>

#include "composite/composed.h"
#include "composite/factors.h"
#include "ops/sign_matrix.h"
#include "signs.h"

namespace sketchlayers {
namespace {

// Signs are unpacked tile by tile, so that a float copy of U2 never exists: a tile's elements,
// small enough for a CPU's second-level cache and large enough to keep a GPU busy.
int64_t tile_elements(const at::Tensor& like) { return like.is_cpu() ? 1 << 18 : 1 << 24; }

int64_t tile_columns(const Sketch& sketch, const at::Tensor& like) {
  const int64_t columns = tile_elements(like) / (sketch.rank + sketch.second_rank());
  return std::max<int64_t>(kSignsPerBlock, columns / kSignsPerBlock * kSignsPerBlock);
}

int64_t tile_rows(const Sketch& sketch, const at::Tensor& like) {
  return std::max<int64_t>(1, tile_elements(like) / (sketch.groups * sketch.inputs()));
}

// Calls body(start, length) for the tiles of [0, size).
template <typename Body>
void for_each_tile(int64_t size, int64_t tile, const Body& body) {
  for (int64_t start = 0; start < size; start += tile) body(start, std::min(tile, size - start));
}

// The signs of rows [row, row + rows) and columns [column, column + columns) of the frame.
at::Tensor sign_tile(const at::Tensor& packed, int64_t row, int64_t rows, int64_t column,
                     int64_t columns, at::ScalarType type) {
  return unpack_signs(packed.narrow(1, row, rows), columns, column, type);
}

// Finishes a tile of c (A S1 + S2 B): the frame, and the rounding to the type of the weight.
void store_tile(at::Tensor weight, at::Tensor tile, const SketchArguments& arguments, int64_t row,
                int64_t column) {
  const int64_t rows = tile.size(1);
  const int64_t columns = tile.size(2);
  if (arguments.frame) {
    tile.mul_(sign_tile(*arguments.frame, row, rows, column, columns, tile.scalar_type()));
  }
  weight.narrow(1, row, rows).narrow(2, column, columns).copy_(tile);
}

// Spatial mixing: [c A, c S2] times a tile of columns of [S1; B].
void spatial_weight(at::Tensor weight, const SketchTensors& tensors, const Sketch& sketch,
                    const SketchArguments& arguments) {
  const auto& [s1, s2, u1, u2] = tensors;
  const auto type = s1.scalar_type();
  const at::Tensor left = output_factor(s2, u1, sketch);
  const bool in_place = type == weight.scalar_type() && !arguments.frame;
  for_each_tile(sketch.inputs(), tile_columns(sketch, s1), [&](int64_t start, int64_t length) {
    const at::Tensor right = at::cat(
        {s1.narrow(2, start, length), unpack_signs(u2, length, start, type, sketch.u2_scale)}, 1);
    if (in_place) {
      at::Tensor tile = weight.narrow(2, start, length);
      at::bmm_out(tile, left, right);
    } else {
      store_tile(weight, at::bmm(left, right), arguments, 0, start);
    }
  });
}

// Channel mixing: rows of c A S1, plus S2 (rows and positions) times B (channels), moved to
// (channel, position).
void channel_weight(at::Tensor weight, const SketchTensors& tensors, const Sketch& sketch,
                    const SketchArguments& arguments) {
  const auto& [s1, s2, u1, u2] = tensors;
  const auto type = s1.scalar_type();
  const int64_t positions = sketch.positions();
  const at::Tensor a =
      unpack_signs(u1, sketch.out_channels, 0, type, sketch.scale * sketch.u1_scale);
  const at::Tensor b =
      unpack_signs(u2, sketch.in_channels, 0, type, sketch.scale * sketch.u2_scale);
  for_each_tile(sketch.out_channels, tile_rows(sketch, s1), [&](int64_t start, int64_t rows) {
    const at::Tensor tile = at::bmm(a.narrow(2, start, rows).transpose(1, 2), s1);
    const at::Tensor second = at::bmm(rows_by_position(s2.narrow(1, start, rows), positions), b);
    tile.view({sketch.groups, rows, sketch.in_channels, positions})
        .add_(second.view({sketch.groups, rows, positions, sketch.in_channels}).transpose(2, 3));
    store_tile(weight, tile, arguments, start, 0);
  });
}

// From functions that ATen differentiates and transforms; B is unpacked as a whole.
at::Tensor weight_by_blocks(const WeightCall& call, const Sketch& sketch) {
  const auto& [s1, s2, u1, u2] = call.tensors;
  const auto type = compute_type(s1.scalar_type());
  const at::Tensor first =
      columns_by_block(s1.to(type).reshape({sketch.groups, sketch.rank, -1}), sketch);
  const at::Tensor second = s2.to(type).reshape(
      {sketch.groups * sketch.blocks, sketch.block_outputs(), sketch.rank * sketch.positions()});
  const at::Tensor a =
      signs_by_block(u1, sketch.out_channels, type, sketch.scale * sketch.u1_scale, sketch);
  const double u2_scale = sketch.scale * sketch.u2_scale;
  at::Tensor weight = joined_columns(at::matmul(a.transpose(1, 2), first), sketch);
  if (sketch.mixes_space()) {
    const at::Tensor b = signs_by_block(u2, sketch.inputs(), type, u2_scale, sketch);
    weight = weight + joined_rows(at::matmul(second, b), sketch);
  } else {
    const at::Tensor b = signs_by_block(u2, sketch.in_channels, type, u2_scale, sketch);
    const at::Tensor by_position = at::matmul(rows_by_position(second, sketch.positions()), b);
    weight = weight + by_position
                          .reshape({sketch.groups, sketch.out_channels, sketch.positions(),
                                    sketch.in_channels})
                          .transpose(2, 3)
                          .reshape(weight.sizes());
  }
  if (call.arguments.frame) {
    weight =
        weight * sign_tile(*call.arguments.frame, 0, sketch.out_channels, 0, sketch.inputs(), type);
  }
  return weight.reshape(sketch.weight_sizes()).to(s1.scalar_type());
}

}  // namespace

at::Tensor sk_weight_composed(const WeightCall& call) {
  const Sketch sketch = check_call(call);
  const auto& [s1, s2, u1, u2] = call.tensors;
  if (sketch.blocks > 1) {
    return in_format(weight_by_blocks(call, sketch), common_memory_format(s1, s1));
  }
  const auto type = compute_type(s1.scalar_type());
  const at::Tensor first = s1.to(type).contiguous().view({sketch.groups, sketch.rank, -1});
  const at::Tensor second = s2.to(type).contiguous().view({sketch.groups, sketch.out_channels, -1});
  at::Tensor weight =
      at::empty({sketch.groups, sketch.out_channels, sketch.inputs()}, s1.options());
  const auto form = sketch.mixes_space() ? spatial_weight : channel_weight;
  form(weight, {first, second, u1, u2}, sketch, call.arguments);
  return in_format(weight.view(sketch.weight_sizes()), common_memory_format(s1, s1));
}

namespace {

// A tile of the gradient in the type of the computation, with the frame's signs.
at::Tensor gradient_tile(const at::Tensor& grad, const SketchArguments& arguments, int64_t row,
                         int64_t rows, int64_t column, int64_t columns, at::ScalarType type) {
  const at::Tensor tile = grad.narrow(1, row, rows).narrow(2, column, columns).to(type);
  if (!arguments.frame) return tile;
  return tile * sign_tile(*arguments.frame, row, rows, column, columns, type);
}

void spatial_adjoint(at::Tensor grad_s1, at::Tensor grad_s2, const at::Tensor& grad,
                     const at::Tensor& a, const at::Tensor& u2, const Sketch& sketch,
                     const SketchArguments& arguments) {
  const auto type = grad_s1.scalar_type();
  for_each_tile(sketch.inputs(), tile_columns(sketch, grad), [&](int64_t start, int64_t length) {
    const at::Tensor tile =
        gradient_tile(grad, arguments, 0, sketch.out_channels, start, length, type);
    at::Tensor s1_tile = grad_s1.narrow(2, start, length);
    at::bmm_out(s1_tile, a, tile);
    const at::Tensor b = unpack_signs(u2, length, start, type, sketch.scale * sketch.u2_scale);
    grad_s2.baddbmm_(tile, b.transpose(1, 2));
  });
}

void channel_adjoint(at::Tensor grad_s1, at::Tensor grad_s2, const at::Tensor& grad,
                     const at::Tensor& a, const at::Tensor& u2, const Sketch& sketch,
                     const SketchArguments& arguments) {
  const auto type = grad_s1.scalar_type();
  const int64_t positions = sketch.positions();
  const at::Tensor b =
      unpack_signs(u2, sketch.in_channels, 0, type, sketch.scale * sketch.u2_scale);
  for_each_tile(sketch.out_channels, tile_rows(sketch, grad), [&](int64_t start, int64_t rows) {
    const at::Tensor tile = gradient_tile(grad, arguments, start, rows, 0, sketch.inputs(), type);
    grad_s1.baddbmm_(a.narrow(2, start, rows), tile);
    const at::Tensor second = at::bmm(rows_by_position(tile, positions), b.transpose(1, 2));
    grad_s2.narrow(1, start, rows)
        .view({sketch.groups, rows, sketch.rank, positions})
        .copy_(second.view({sketch.groups, rows, positions, sketch.rank}).transpose(2, 3));
  });
}

// grad (groups, d1, n) as it is in memory, for more than one block.
WeightGradients adjoint_by_blocks(const at::Tensor& grad, const WeightBackwardCall& call,
                                  const Sketch& sketch) {
  const auto type = compute_type(grad.scalar_type());
  const at::Tensor matrix =
      gradient_tile(grad, call.arguments, 0, sketch.out_channels, 0, sketch.inputs(), type);
  const at::Tensor a =
      signs_by_block(call.u1, sketch.out_channels, type, sketch.scale * sketch.u1_scale, sketch);
  const double u2_scale = sketch.scale * sketch.u2_scale;
  const at::Tensor grad_s1 = joined_columns(at::bmm(a, columns_by_block(matrix, sketch)), sketch);
  const at::Tensor rows = rows_by_block(matrix, sketch);
  at::Tensor grad_s2;
  if (sketch.mixes_space()) {
    const at::Tensor b = signs_by_block(call.u2, sketch.inputs(), type, u2_scale, sketch);
    grad_s2 = at::bmm(rows, b.transpose(1, 2));
  } else {
    const at::Tensor b = signs_by_block(call.u2, sketch.in_channels, type, u2_scale, sketch);
    grad_s2 = at::bmm(rows_by_position(rows, sketch.positions()), b.transpose(1, 2))
                  .reshape({-1, sketch.positions(), sketch.rank})
                  .transpose(1, 2);
  }
  const auto finished = [&](const at::Tensor& result, const std::vector<int64_t>& sizes) {
    return result.reshape(sizes).to(grad.scalar_type()).contiguous();
  };
  return {finished(grad_s1, sketch.s1_sizes()), finished(grad_s2, sketch.s2_sizes())};
}

}  // namespace

WeightGradients sk_weight_composed_backward(const WeightBackwardCall& call) {
  const Sketch sketch = check_call(call);
  const at::Tensor& grad = call.grad;
  const auto type = compute_type(grad.scalar_type());
  const at::Tensor matrix =
      grad.contiguous().view({sketch.groups, sketch.out_channels, sketch.inputs()});
  if (sketch.blocks > 1) return adjoint_by_blocks(matrix, call, sketch);
  const at::Tensor a =
      unpack_signs(call.u1, sketch.out_channels, 0, type, sketch.scale * sketch.u1_scale);
  const auto options = grad.options().dtype(type);
  at::Tensor grad_s1 = at::zeros({sketch.groups, sketch.rank, sketch.inputs()}, options);
  at::Tensor grad_s2 =
      at::zeros({sketch.groups, sketch.out_channels, sketch.rank * sketch.positions()}, options);
  const auto pull_back = sketch.mixes_space() ? spatial_adjoint : channel_adjoint;
  pull_back(grad_s1, grad_s2, matrix, a, call.u2, sketch, call.arguments);
  return {grad_s1.view(sketch.s1_sizes()).to(grad.scalar_type()),
          grad_s2.view(sketch.s2_sizes()).to(grad.scalar_type())};
}

at::Tensor sk_weight_composition(const WeightCall& call) {
  return weight_by_blocks(call, check_call(call));
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
