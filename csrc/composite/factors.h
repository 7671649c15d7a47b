// The factors of a sketch as tensors: of the stacked form  y = [c A, c S2] ([S1; B] x), and of one
// whose blocks have signs of their own, with (group, block) as the batch axis of matrices.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>

#include "ops/sign_matrix.h"
#include "ops/sketch.h"

namespace sketchlayers {

// S2 (groups, d1, second_rank) -> [c A, c S2] (groups, d1, rank + second_rank).
inline at::Tensor output_factor(const at::Tensor& s2, const at::Tensor& u1, const Sketch& sketch) {
  const at::Tensor a =
      unpack_signs(u1, sketch.out_channels, 0, s2.scalar_type(), sketch.scale * sketch.u1_scale);
  return at::cat({a.transpose(1, 2), s2 * sketch.scale}, 2);
}

// (groups, rows, c * positions) -> (groups, rows * positions, c): the kernel positions become rows.
inline at::Tensor rows_by_position(const at::Tensor& matrix, int64_t positions) {
  const int64_t groups = matrix.size(0);
  const int64_t rows = matrix.size(1);
  return matrix.reshape({groups, rows, -1, positions})
      .transpose(2, 3)
      .reshape({groups, rows * positions, -1});
}

// With one block, which is the sketch of the paper, the following are reshapes.

// (groups, blocks * rows, words) -> (groups * blocks, rows, columns).
inline at::Tensor signs_by_block(const at::Tensor& packed, int64_t columns, at::ScalarType type,
                                 double scale, const Sketch& sketch) {
  return unpack_signs(packed, columns, 0, type, scale)
      .reshape({sketch.groups * sketch.blocks, -1, columns});
}

// Blocks of columns: (groups, rows, columns) -> (groups * blocks, rows, columns / blocks).
inline at::Tensor columns_by_block(const at::Tensor& matrix, const Sketch& sketch) {
  if (sketch.blocks == 1) return matrix;
  return matrix.unflatten(2, {sketch.blocks, -1}).transpose(1, 2).flatten(0, 1);
}

// The way back.
inline at::Tensor joined_columns(const at::Tensor& blocks, const Sketch& sketch) {
  if (sketch.blocks == 1) return blocks;
  return blocks.unflatten(0, {sketch.groups, sketch.blocks}).transpose(1, 2).flatten(2, 3);
}

// Blocks of rows lie together: (groups, blocks * rows, columns) -> (groups * blocks, rows,
// columns).
inline at::Tensor rows_by_block(const at::Tensor& matrix, const Sketch& sketch) {
  return matrix.reshape({sketch.groups * sketch.blocks, -1, matrix.size(2)});
}

// The way back.
inline at::Tensor joined_rows(const at::Tensor& blocks, const Sketch& sketch) {
  return blocks.reshape({sketch.groups, -1, blocks.size(2)});
}

}  // namespace sketchlayers
