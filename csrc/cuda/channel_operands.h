// Tensors as the channel mixing kernels take them, and what the files that launch these share.
#pragma once

#include <ATen/cuda/CUDAContext.h>
#include <c10/util/accumulate.h>

#include <type_traits>
#include <utility>

#include "cuda/channel_factors.h"
#include "cuda/launches.h"
#include "ops/sk_conv2d.h"

namespace sketchlayers::cuda {

constexpr int64_t kLargestSize = int64_t{1} << 28;  // of channels, which kernels count as ints
constexpr int64_t kLargestTaps = int64_t{1} << 12;
constexpr int64_t kLargestGroups = 65535;

// Whether the kernels take the layer at all; a tile may still not fit.
inline bool takes_layer(const at::Tensor& input, at::IntArrayRef output_sizes,
                        const Sketch& sketch) {
  const bool mixes_channels = !sketch.mixes_space() || sketch.positions() == 1;
  return mixes_channels && sketch.blocks == 1 && input.numel() > 0 &&
         c10::multiply_integers(output_sizes) > 0 && sketch.rank <= kLargestChannelRank &&
         sketch.in_channels < kLargestSize && sketch.out_channels < kLargestSize &&
         sketch.positions() < kLargestTaps && sketch.groups <= kLargestGroups &&
         at::cuda::getCurrentDeviceProperties()->major >= 8;
}

inline ConvAxis axis(const at::Tensor& input, const at::Tensor& output, int dim, int64_t kernel,
                     const ConvArguments& conv) {
  const int i = dim - 2;
  return {input.size(dim), output.size(dim), kernel,
          conv.stride[i],  conv.padding[i],  conv.dilation[i]};
}

// s1 (groups * rank, d2/groups, h, w)
inline FactorView s1_view(const at::Tensor& s1, const Sketch& sketch) {
  return {s1.const_data_ptr(), s1.stride(0) * sketch.rank, s1.stride(0), s1.stride(1), s1.stride(2),
          s1.stride(3)};
}
// s2 (groups * d1/groups, rank, h, w)
inline FactorView s2_view(const at::Tensor& s2, const Sketch& sketch) {
  return {s2.const_data_ptr(), s2.stride(0) * sketch.out_channels,
          s2.stride(1),        s2.stride(0),
          s2.stride(2),        s2.stride(3)};
}
inline SignsView signs_view(const at::Tensor& packed) {  // contiguous
  return {packed.const_data_ptr<int32_t>(), packed.stride(0), packed.stride(1)};
}

// 16 bytes of neighbouring channels can be moved at once.
inline bool moves_units(const at::Tensor& tensor, int64_t channels) {
  const int64_t per_unit = kUnitBytes / tensor.element_size();
  const auto aligned = [&](int dim) {
    return tensor.size(dim) == 1 || tensor.stride(dim) % per_unit == 0;
  };
  return tensor.stride(1) == 1 && channels % per_unit == 0 && aligned(0) && aligned(2) &&
         aligned(3) && reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % kUnitBytes == 0;
}

inline Images images_view(const at::Tensor& images, int64_t channels) {
  return {images.const_data_ptr(),
          {images.stride(0), images.stride(1), images.stride(2), images.stride(3)},
          static_cast<int>(channels),
          moves_units(images, channels),
          images.stride(3) < images.stride(1)};
}

// body(pairs of 8 columns that hold the rank, as a constant).
template <typename Body>
bool for_rank_pairs(int64_t rank, const Body& body) {
  switch (ceil_divide(rank, 16)) {
    case 1:
      return body(std::integral_constant<int, 1>());
    case 2:
      return body(std::integral_constant<int, 2>());
    case 3:
      return body(std::integral_constant<int, 3>());
    default:
      return body(std::integral_constant<int, 4>());
  }
}

// channel_gradients.cpp. The gradients of (s1, s2) of a layer with channel mixing; undefined
// tensors for what is not wanted and where the kernels don't take the layer.
std::pair<at::Tensor, at::Tensor> try_factor_gradients(const ConvBackwardCall& call,
                                                       const Sketch& sketch);

}  // namespace sketchlayers::cuda
