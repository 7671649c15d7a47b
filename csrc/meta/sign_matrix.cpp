#include "ops/sign_matrix.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "signs.h"

namespace sketchlayers {
namespace {

at::Tensor sign_matrix_meta(int64_t seed, int64_t matrix, c10::SymInt rows, c10::SymInt columns,
                            std::optional<at::Device> /*device*/) {
  check_sign_matrix(seed, matrix, rows, columns);
  return at::empty_symint({rows, sign_words(columns)},
                          at::TensorOptions().dtype(at::kInt).device(at::kMeta));
}

at::Tensor unpack_signs_meta(const at::Tensor& packed, c10::SymInt columns, c10::SymInt start,
                             at::ScalarType dtype, double /*scale*/) {
  check_unpack_signs(packed, columns, start, dtype);
  auto sizes = packed.sym_sizes().vec();
  sizes.back() = columns;
  return at::empty_symint(sizes, packed.options().dtype(dtype));
}

TORCH_LIBRARY_IMPL(sketchlayers, Meta, m) {
  m.impl("sign_matrix", TORCH_FN(sign_matrix_meta));
  m.impl("unpack_signs", TORCH_FN(unpack_signs_meta));
}

}  // namespace
}  // namespace sketchlayers
