#include "ops/hadamard_signs.h"

#include <torch/library.h>

#include "ops/operator.h"

namespace sketchlayers {

at::Tensor hadamard_signs(int64_t seed, int64_t matrix, int64_t rows, int64_t columns,
                          std::optional<at::Device> device) {
  static const auto op =
      find_operator<at::Tensor(int64_t, int64_t, int64_t, int64_t, std::optional<at::Device>)>(
          "hadamard_signs");
  return op.call(seed, matrix, rows, columns, device);
}

TORCH_LIBRARY_FRAGMENT(sketchlayers, m) {
  m.def(
      "hadamard_signs(int seed, int matrix, int rows, int columns, *, Device? device=None)"
      " -> Tensor",
      {at::Tag::pt2_compliant_tag});
}

}  // namespace sketchlayers
