// The factors of the stacked form  y = [c A, c S2] ([S1; B] x)  as tensors.
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

}  // namespace sketchlayers
