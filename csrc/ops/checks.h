// Argument checks that all operators share.
#pragma once

#include <ATen/core/Tensor.h>

namespace sketchlayers {

// Raises unless elements lie in memory at strides, where kernels look for them. A sparse tensor
// would be taken apart by compositions of ATen's operations, which have no end for some.
inline void check_strided(const char* op, const char* name, const at::Tensor& tensor) {
  TORCH_CHECK(tensor.layout() == at::kStrided, op, ": ", name,
              " must be a dense tensor, such as to_dense() makes it (got layout ", tensor.layout(),
              ")");
}

}  // namespace sketchlayers
