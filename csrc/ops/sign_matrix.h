#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace sketchlayers {

// Packed Rademacher signs, int32 (rows, 4 * ceil(columns / 128)); see signs.h for the format.
at::Tensor sign_matrix(int64_t seed, int64_t matrix, c10::SymInt rows, c10::SymInt columns,
                       std::optional<at::Device> device = std::nullopt);

// Rows of H D, packed as sign_matrix packs them: H of Walsh and Hadamard, of as many rows as the
// next power of two of `columns`, D random signs on the diagonal. The rows are chosen at random and
// differ; where they do not suffice, more come from another diagonal and another order. `matrix`
// must be below 2^29.
at::Tensor hadamard_signs(int64_t seed, int64_t matrix, int64_t rows, int64_t columns,
                          std::optional<at::Device> device = std::nullopt);

// Columns [start, start + columns) of packed signs (..., words) as scale * (+1 or -1): (...,
// columns) of `dtype`.
at::Tensor unpack_signs(const at::Tensor& packed, c10::SymInt columns, c10::SymInt start = 0,
                        at::ScalarType dtype = at::kFloat, double scale = 1.0);

// Argument checks, called by every kernel before it does any work.
void check_sign_matrix(int64_t seed, int64_t matrix, const c10::SymInt& rows,
                       const c10::SymInt& columns);
void check_unpack_signs(const at::Tensor& packed, const c10::SymInt& columns,
                        const c10::SymInt& start, at::ScalarType dtype);

}  // namespace sketchlayers
