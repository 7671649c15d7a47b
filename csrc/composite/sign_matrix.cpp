// Signs on devices without kernels of their own: made on the CPU, unpacked by ATen's operations.
#include "ops/sign_matrix.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/where.h>
#include <torch/library.h>

#include "composite/composed.h"
#include "signs.h"

namespace sketchlayers {

at::Tensor sign_matrix_composed(int64_t seed, int64_t matrix, int64_t rows, int64_t columns,
                                std::optional<at::Device> device) {
  const at::Tensor packed = sign_matrix(seed, matrix, rows, columns, at::Device(at::kCPU));
  return device ? packed.to(*device) : packed;
}

at::Tensor unpack_signs_composed(const at::Tensor& packed, int64_t columns, int64_t start,
                                 at::ScalarType dtype, double scale) {
  check_unpack_signs(packed, columns, start, dtype);
  const at::Tensor places = at::arange(kSignsPerWord, packed.options());
  const at::Tensor bits =
      packed.unsqueeze(-1).bitwise_right_shift(places).bitwise_and(1).flatten(-2);
  const auto number = [&](double value) {
    return at::full({}, value, packed.options().dtype(dtype));
  };
  return at::where(bits.narrow(-1, start, columns).ne(0), number(-scale), number(scale));
}

TORCH_LIBRARY_IMPL(sketchlayers, CompositeExplicitAutograd, m) {
  m.impl("sign_matrix", TORCH_FN(sign_matrix_composed));
  m.impl("unpack_signs", TORCH_FN(unpack_signs_composed));
}

}  // namespace sketchlayers
