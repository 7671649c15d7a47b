#include "cpu/panel_operands.h"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "ops/processor.h"

namespace sketchlayers::cpu {

bool takes_panels(at::ScalarType type, const Sketch& sketch) {
  return type == at::kBFloat16 && sketch.groups == 1 && sketch.blocks == 1 && multiplies_bfloat16();
}

at::Tensor lined_up(int64_t rows, int64_t columns, const at::TensorOptions& options) {
  const int64_t row = left_row(columns);
  const at::Tensor whole = at::empty({rows, row}, options);
  auto* data = whole.mutable_data_ptr<c10::BFloat16>();
  const int64_t zeros = whole_lines(columns) - columns;
  for (int64_t i = 0; zeros > 0 && i < rows; ++i) {
    std::fill_n(data + i * row + columns, zeros, c10::BFloat16(0));
  }
  return whole.narrow(1, 0, columns);
}

at::Tensor left_side(const at::Tensor& rows) {
  return lined_up(rows.size(0), rows.size(1), rows.options()).copy_(rows);
}

at::Tensor as_left_side(const at::Tensor& rows) {
  constexpr int64_t kFewRows = 16;
  const int64_t columns = rows.size(1);
  const bool in_lines = columns % kLineNumbers == 0;
  if (in_lines && (rows.size(0) < kFewRows || left_row(columns) == columns)) return rows;
  return left_side(rows);
}

Term term(const at::Tensor& left, const RightSide& right, double scale) {
  return {left.const_data_ptr<c10::BFloat16>(), left.stride(0), left.size(1), right, scale};
}

RightSide numbers_of(const at::Tensor& matrix, bool transposed) {
  return {matrix.const_data_ptr<c10::BFloat16>(), nullptr, matrix.stride(0), transposed};
}

RightSide signs_of(const at::Tensor& packed, bool transposed) {
  return {nullptr, packed.const_data_ptr<int32_t>(), packed.stride(0), transposed};
}

Result result(const at::Tensor& matrix) {
  return {matrix.mutable_data_ptr<c10::BFloat16>(), matrix.stride(0), matrix.stride(1)};
}

}  // namespace sketchlayers::cpu
