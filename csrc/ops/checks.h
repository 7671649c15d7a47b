// Argument checks that all operators share, and the types of elements.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>

namespace sketchlayers {

// Raises unless elements lie in memory at strides, where kernels look for them. A sparse tensor
// would be taken apart by compositions of ATen's operations, which have no end for some.
inline void check_strided(const char* op, const char* name, const at::Tensor& tensor) {
  TORCH_CHECK(tensor.layout() == at::kStrided, op, ": ", name,
              " must be a dense tensor, such as to_dense() makes it (got layout ", tensor.layout(),
              ")");
}

// Whether kernels compute with elements of this type.
inline bool is_computed_type(at::ScalarType type) {
  return type == at::kFloat || type == at::kDouble || type == at::kHalf || type == at::kBFloat16;
}

// Whether they do so in float32, reading and writing the type.
inline bool computes_in_float(at::ScalarType type) {
  return type == at::kFloat || type == at::kBFloat16 || type == at::kHalf;
}

// body(a value of that type).
template <typename Body>
auto for_type(at::ScalarType type, const Body& body) {
  if (type == at::kBFloat16) return body(c10::BFloat16());
  if (type == at::kHalf) return body(c10::Half());
  return body(float());
}

// Raises unless elements are of a type that kernels compute with, and lie as they must.
inline void check_floating(const char* op, const char* name, const at::Tensor& tensor) {
  const auto type = tensor.scalar_type();
  TORCH_CHECK_TYPE(is_computed_type(type), op, ": ", name,
                   " must be float32, float64, bfloat16 or float16 (got ", type, ")");
  check_strided(op, name, tensor);
}

// Raises unless the bytes of a result can be counted in 63 bits. Zeros are left out of the product,
// since PyTorch multiplies the other sizes, too; symbolic sizes are not known yet.
inline void check_result_sizes(const char* op, c10::SymIntArrayRef sizes) {
  constexpr int64_t kMostElements = (int64_t{1} << 60) - 1;  // of 8 bytes
  int64_t elements = 1;
  for (const c10::SymInt& size : sizes) {
    const int64_t known = std::max<int64_t>(size.maybe_as_int().value_or(1), 1);
    TORCH_CHECK_VALUE(elements <= kMostElements / known, op,
                      ": the sizes of the result, without zeros, must have a product below 2^60 "
                      "(got ",
                      sizes, ")");
    elements *= known;
  }
}

}  // namespace sketchlayers
