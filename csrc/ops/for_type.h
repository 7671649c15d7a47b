// The types of elements that are read and written while float32 is computed with.
#pragma once

#include <ATen/core/Tensor.h>

namespace sketchlayers {

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

}  // namespace sketchlayers
