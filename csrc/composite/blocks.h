// Operands of a sketch whose blocks have signs of their own, with (group, block) as the batch axis
// of matrices. One block is the sketch of the paper, and these are reshapes.
#pragma once

#include <ATen/core/Tensor.h>

#include "ops/sign_matrix.h"
#include "ops/sketch.h"

namespace sketchlayers {

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
