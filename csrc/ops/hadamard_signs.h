#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace sketchlayers {

// Rows of H D, packed as sign_matrix packs them: H of Walsh and Hadamard, of as many rows as the
// next power of two of `columns`, D random signs on the diagonal. The rows are chosen at random and
// differ; where they do not suffice, more come from another diagonal and another order. `matrix`
// must be below 2^29.
at::Tensor hadamard_signs(int64_t seed, int64_t matrix, int64_t rows, int64_t columns,
                          std::optional<at::Device> device = std::nullopt);

}  // namespace sketchlayers
