// The kernels for the gradients of the factors: how their bodies meet threads.
#pragma once

#include "cuda/channel_gradient.h"

namespace sketchlayers::cuda {

extern __shared__ __align__(16) unsigned char gradient_shared[];

// The features of two sets of images in one launch: blocks of the first, then of the second.
template <typename Traits>
__global__ void __launch_bounds__(Traits::kThreads, 2)
    pixel_features_kernel(const __grid_constant__ PixelFeaturesParams first,
                          const __grid_constant__ PixelFeaturesParams second,
                          int64_t first_blocks) {
  DeviceBlock<typename PixelFeatures<Traits>::Warp> block(gradient_shared);
  const bool is_first = blockIdx.x < first_blocks;
  PixelFeatures<Traits>(is_first ? first : second, gradient_shared,
                        is_first ? blockIdx.x : blockIdx.x - first_blocks,
                        static_cast<int>(blockIdx.y))
      .run(block);
}

// Both gradients in one launch: chunks of the input's channels, then of the output's.
template <typename Traits, bool kShiftsImages>
__device__ __forceinline__ void channel_gradient_block(const ChannelGradientParams& params,
                                                       int chunk) {
  using Body = ChannelGradient<Traits, kShiftsImages>;
  DeviceBlock<typename Body::Warp> block(gradient_shared);
  Body(params, gradient_shared, static_cast<int>(blockIdx.x) % params.splits, chunk,
       static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z))
      .run(block);
}

template <typename Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kBlocks)
    channel_gradient_kernel(const __grid_constant__ ChannelGradientParams params,
                            int first_chunks) {
  const int chunk = static_cast<int>(blockIdx.x) / params.splits;
  if (chunk < first_chunks) {
    channel_gradient_block<Traits, true>(params, chunk);
  } else {
    channel_gradient_block<Traits, false>(params, chunk - first_chunks);
  }
}

template <typename T>
__global__ void __launch_bounds__(256)
    gradient_sum_kernel(const __grid_constant__ GradientSumParams params) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < params.elements) add_splits<T>(params, i);
}

}  // namespace sketchlayers::cuda
