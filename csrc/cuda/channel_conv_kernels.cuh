// The channel mixing kernels: how their bodies meet threads.
#pragma once

#include "cuda/channel_factors.h"

namespace sketchlayers::cuda {

extern __shared__ __align__(16) unsigned char dynamic_shared[];

template <typename Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kBlocks)
    channel_conv_kernel(const __grid_constant__ ChannelConvParams params) {
  DeviceBlock<typename ChannelConv<Traits>::Warp> block(dynamic_shared);
  ChannelConv<Traits>(params, dynamic_shared, blockIdx.x, static_cast<int>(blockIdx.y)).run(block);
}

template <typename Traits>
__global__ void __launch_bounds__(256)
    pack_channel_factors_kernel(const __grid_constant__ ChannelFactorsParams params,
                                int64_t items) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (item < items) ChannelFactors<Traits>::pack(params, item, static_cast<int>(blockIdx.y));
}

}  // namespace sketchlayers::cuda
