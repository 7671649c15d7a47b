#include "ops/sign_matrix.h"

#include <torch/library.h>

#include <limits>

#include "ops/checks.h"
#include "ops/operator.h"
#include "signs.h"

namespace sketchlayers {
namespace {

const auto& sign_matrix_operator() {
  static const auto op = find_operator<decltype(sign_matrix)>("sign_matrix");
  return op;
}

}  // namespace

at::Tensor sign_matrix(int64_t seed, int64_t matrix, c10::SymInt rows, c10::SymInt columns,
                       std::optional<at::Device> device) {
  return sign_matrix_operator().call(seed, matrix, std::move(rows), std::move(columns), device);
}

at::Tensor unpack_signs(const at::Tensor& packed, c10::SymInt columns, c10::SymInt start,
                        at::ScalarType dtype, double scale) {
  static const auto op = find_operator<decltype(unpack_signs)>("unpack_signs");
  return op.call(packed, std::move(columns), std::move(start), dtype, scale);
}

void check_sign_matrix(int64_t /*seed*/, int64_t matrix, const c10::SymInt& rows,
                       const c10::SymInt& columns) {
  constexpr int64_t kWordLimit = int64_t{1} << 32;  // each is one 32-bit word of the counter
  TORCH_CHECK_VALUE(matrix >= 0 && matrix < kWordLimit,
                    "sign_matrix: matrix must be in [0, 2^32) (got matrix=", matrix, ")");
  TORCH_CHECK_VALUE(rows >= 0 && rows <= kWordLimit,
                    "sign_matrix: rows must be in [0, 2^32] (got rows=", rows, ")");
  TORCH_CHECK_VALUE(columns >= 0 && columns <= kWordLimit * kSignsPerBlock,
                    "sign_matrix: columns must be in [0, 2^39] (got columns=", columns, ")");
  if (columns == 0 || rows == 0) return;
  TORCH_CHECK_VALUE(rows <= std::numeric_limits<int64_t>::max() / 4 / sign_words(columns),
                    "sign_matrix: the packed matrix must have fewer than 2^63 bytes (got rows=",
                    rows, ", columns=", columns, ")");
}

void check_unpack_signs(const at::Tensor& packed, const c10::SymInt& columns,
                        const c10::SymInt& start, at::ScalarType dtype) {
  TORCH_CHECK_TYPE(packed.scalar_type() == at::kInt,
                   "unpack_signs: packed signs must be int32 (got ", packed.scalar_type(), ")");
  check_strided("unpack_signs", "packed signs", packed);
  TORCH_CHECK_TYPE(is_computed_type(dtype),
                   "unpack_signs: dtype must be float32, float64, bfloat16 or float16 (got ", dtype,
                   ")");
  TORCH_CHECK(packed.dim() >= 1,
              "unpack_signs: packed signs must have at least one dimension (got a scalar)");
  TORCH_CHECK_VALUE(columns >= 0 && start >= 0,
                    "unpack_signs: columns and start must not be negative (got columns=", columns,
                    ", start=", start, ")");
  const auto words = packed.sym_size(-1);
  TORCH_CHECK_VALUE(words <= std::numeric_limits<int64_t>::max() / kSignsPerWord,
                    "unpack_signs: a packed row must have fewer than 2^58 words (got ", words, ")");
  const auto available = words * kSignsPerWord;
  // Compared without start + columns, which could overflow.
  TORCH_CHECK_VALUE(start <= available && columns <= available - start,
                    "unpack_signs: columns [start, start + columns) must lie in the packed row (got"
                    " start=",
                    start, ", columns=", columns, ", row of ", available, ")");
  auto sizes = packed.sym_sizes().vec();
  sizes.back() = columns;
  check_result_sizes("unpack_signs", sizes);
}

namespace {

// No tensor argument tells the dispatcher where to go, so the device does.
at::Tensor select_backend(int64_t seed, int64_t matrix, int64_t rows, int64_t columns,
                          std::optional<at::Device> device) {
  const auto key = c10::computeDispatchKey(at::kInt, at::kStrided, device);
  return sign_matrix_operator().redispatch(c10::DispatchKeySet(key), seed, matrix, rows, columns,
                                           device);
}

TORCH_LIBRARY_FRAGMENT(sketchlayers, m) {
  m.def(
      "sign_matrix(int seed, int matrix, SymInt rows, SymInt columns, *, Device? device=None)"
      " -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "unpack_signs(Tensor packed, SymInt columns, *, SymInt start=0, ScalarType dtype=float32,"
      " float scale=1.0) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(sketchlayers, BackendSelect, m) {
  m.impl("sign_matrix", TORCH_FN(select_backend));
}

}  // namespace
}  // namespace sketchlayers
