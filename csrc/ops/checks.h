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

// Raises unless elements are of a type that kernels compute with, and lie as they must.
inline void check_floating(const char* op, const char* name, const at::Tensor& tensor) {
  const auto type = tensor.scalar_type();
  TORCH_CHECK_TYPE(
      type == at::kFloat || type == at::kDouble || type == at::kHalf || type == at::kBFloat16, op,
      ": ", name, " must be float32, float64, bfloat16 or float16 (got ", type, ")");
  check_strided(op, name, tensor);
}

}  // namespace sketchlayers
