// Tensors as the operands of products of panels.
#pragma once

#include <ATen/core/Tensor.h>

#include "cpu/panels.h"
#include "ops/sketch.h"

namespace sketchlayers::cpu {

// Whether a sketch of numbers of this type can be multiplied by panels on this processor.
bool takes_panels(at::ScalarType type, const Sketch& sketch);

// How far rows of a left side lie apart: whole lines, and not so many that rows of a tile share a
// few lines of the first-level cache.
constexpr int64_t left_row(int64_t numbers) {
  const int64_t row = whole_lines(numbers);
  return row % (16 * kLineNumbers) == 0 ? row + kLineNumbers : row;
}

// A new left side, with zeros behind its rows.
at::Tensor lined_up(int64_t rows, int64_t columns, const at::TensorOptions& options);

// A copy of rows, and the rows themselves where products read them fast.
at::Tensor left_side(const at::Tensor& rows);
at::Tensor as_left_side(const at::Tensor& rows);

Term term(const at::Tensor& left, const RightSide& right, double scale = 1);

// Rows of numbers in memory, as a right side or as its transpose.
RightSide numbers_of(const at::Tensor& matrix, bool transposed = false);
RightSide signs_of(const at::Tensor& packed, bool transposed = false);

Result result(const at::Tensor& matrix);

}  // namespace sketchlayers::cpu
