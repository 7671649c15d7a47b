// Signs of the subsampled randomised Hadamard transform. This is a file format, as signs.h is:
// which diagonal and which rows belong to (seed, matrix) never changes.
#include <ATen/ops/arange.h>
#include <ATen/ops/argsort.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <bit>

#include "ops/operator.h"
#include "ops/sign_matrix.h"
#include "signs.h"

namespace sketchlayers {
namespace {

// Numbers of the sign matrices that decide a transform: above those of any group's own matrices.
constexpr int64_t kDiagonals = int64_t{1} << 30;
constexpr int64_t kOrders = kDiagonals + (int64_t{1} << 29);
constexpr int64_t kMatrixLimit = int64_t{1} << 29;
constexpr int64_t kRowLimit = int64_t{1} << 31;  // of all transforms together, 16 bytes each

// A random order of the rows for each transform, (transforms, size): that of 64-bit random keys.
at::Tensor row_orders(int64_t seed, int64_t matrix, int64_t transforms, int64_t size,
                      std::optional<at::Device> device) {
  const at::Tensor words =
      sign_matrix(seed, kOrders + matrix, transforms * size, 64, device).to(at::kLong);
  const at::Tensor keys = words.select(1, 1).bitwise_left_shift(32).bitwise_or(
      words.select(1, 0).bitwise_and(0xFFFFFFFF));
  return at::argsort(keys.view({transforms, size}), /*stable=*/true, /*dim=*/1);
}

// Whether a number has an odd number of bits, 1 or 0.
at::Tensor parity(at::Tensor number) {
  for (const int shift : {32, 16, 8, 4, 2, 1}) {
    number = number.bitwise_xor(number.bitwise_right_shift(shift));
  }
  return number.bitwise_and(1);
}

// Rows of the Walsh-Hadamard matrix, `words` words each: bit 1, a minus, where the numbers of row
// and column share an odd number of bits. The column's upper bits are the number of its word.
at::Tensor walsh_rows(const at::Tensor& indices, int64_t words) {
  at::Tensor within = at::zeros_like(indices);  // the word for upper bits of zero
  const int64_t columns_with_bit[] = {0xAAAAAAAA, 0xCCCCCCCC, 0xF0F0F0F0, 0xFF00FF00, 0xFFFF0000};
  for (int bit = 0; bit < 5; ++bit) {
    const at::Tensor shared = indices.bitwise_right_shift(bit).bitwise_and(1);
    within = within.bitwise_xor(shared.mul(columns_with_bit[bit]));
  }
  const at::Tensor upper = indices.bitwise_right_shift(5).unsqueeze(1);
  const at::Tensor flips = parity(upper.bitwise_and(at::arange(words, indices.options())));
  return within.unsqueeze(1).bitwise_xor(flips.neg()).to(at::kInt);
}

at::Tensor hadamard_signs_composite(int64_t seed, int64_t matrix, int64_t rows, int64_t columns,
                                    std::optional<at::Device> device) {
  TORCH_CHECK_VALUE(matrix >= 0 && matrix < kMatrixLimit,
                    "hadamard_signs: matrix must be in [0, 2^29) (got matrix=", matrix, ")");
  TORCH_CHECK_VALUE(rows >= 0 && rows <= kRowLimit,
                    "hadamard_signs: rows must be in [0, 2^31] (got rows=", rows, ")");
  TORCH_CHECK_VALUE(columns >= 1 && columns <= kRowLimit,
                    "hadamard_signs: columns must be in [1, 2^31] (got columns=", columns, ")");
  const auto size = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(columns)));
  const int64_t transforms = (rows + size - 1) / size;
  const at::Tensor diagonals = sign_matrix(seed, kDiagonals + matrix, transforms, columns, device);
  const int64_t words = sign_words(columns);
  if (rows == 0 || diagonals.is_meta()) return diagonals.new_empty({rows, words});
  const at::Tensor chosen =
      row_orders(seed, matrix, transforms, size, device).flatten().slice(0, 0, rows);
  const at::Tensor transform = at::arange(rows, chosen.options()).floor_divide(size);
  return walsh_rows(chosen, words).bitwise_xor(diagonals.index_select(0, transform));
}

TORCH_LIBRARY_FRAGMENT(sketchlayers, m) {
  m.def(
      "hadamard_signs(int seed, int matrix, int rows, int columns, *, Device? device=None)"
      " -> Tensor",
      TORCH_FN(hadamard_signs_composite), {at::Tag::pt2_compliant_tag});
}

}  // namespace

at::Tensor hadamard_signs(int64_t seed, int64_t matrix, int64_t rows, int64_t columns,
                          std::optional<at::Device> device) {
  static const auto op = find_operator<decltype(hadamard_signs)>("hadamard_signs");
  return op.call(seed, matrix, rows, columns, device);
}

}  // namespace sketchlayers
