#pragma once

#include <ATen/autocast_mode.h>

#include <optional>

namespace sketchlayers {

// The tensor in autocast's lower type for its device, through autocast's cache for parameters.
inline at::Tensor lower(const at::Tensor& tensor) {
  const auto device = tensor.device().type();
  return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), tensor, device);
}

inline std::optional<at::Tensor> lower(const std::optional<at::Tensor>& tensor) {
  if (!tensor) return std::nullopt;
  return lower(*tensor);
}

}  // namespace sketchlayers
