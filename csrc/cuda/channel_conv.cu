// The channel mixing kernels: how their bodies meet threads.
#include "cuda/kernel_grid.h"
#include "cuda/launches.h"

namespace sketchlayers::cuda {
namespace {

extern __shared__ __align__(16) unsigned char dynamic_shared[];

template <typename Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kBlocks)
    channel_conv_kernel(const __grid_constant__ ChannelConvParams params) {
  DeviceBlock<typename ChannelConv<Traits>::Warp> block;
  ChannelConv<Traits>(params, dynamic_shared, blockIdx.x, static_cast<int>(blockIdx.y)).run(block);
}

template <typename Traits>
__global__ void __launch_bounds__(256)
    pack_channel_factors_kernel(const __grid_constant__ ChannelFactorsParams params,
                                int64_t items) {
  for_each_item(items, [&](int64_t item) {
    ChannelFactors<Traits>::pack(params, item, static_cast<int>(blockIdx.y));
  });
}

}  // namespace

template <typename Traits>
cudaError_t launch_channel_factors(const ChannelFactorsParams& params, int64_t items,
                                   cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned int>(ceil_divide(items, kThreadsOfLoop)),
                  static_cast<unsigned int>(params.groups));
  pack_channel_factors_kernel<Traits><<<grid, kThreadsOfLoop, 0, stream>>>(params, items);
  return cudaGetLastError();
}

template <typename Traits>
cudaError_t launch_channel_conv(const ChannelConvParams& params, dim3 grid, int shared,
                                cudaStream_t stream) {
  const auto kernel = channel_conv_kernel<Traits>;
  if (const cudaError_t error = allow_shared(kernel)) return error;
  kernel<<<grid, Traits::kThreads, shared, stream>>>(params);
  return cudaGetLastError();
}

#define SKETCHLAYERS_INSTANTIATE(...)                                                  \
  template cudaError_t launch_channel_factors<ChannelConvChoice<__VA_ARGS__>::Traits>( \
      const ChannelFactorsParams&, int64_t, cudaStream_t);                             \
  template cudaError_t launch_channel_conv<ChannelConvChoice<__VA_ARGS__>::Traits>(    \
      const ChannelConvParams&, dim3, int, cudaStream_t);
#define SKETCHLAYERS_INSTANTIATE_TYPE(T) \
  SKETCHLAYERS_INSTANTIATE(T, 1)         \
  SKETCHLAYERS_INSTANTIATE(T, 2)         \
  SKETCHLAYERS_INSTANTIATE(T, 3)         \
  SKETCHLAYERS_INSTANTIATE(T, 4)
SKETCHLAYERS_INSTANTIATE_TYPE(float)
SKETCHLAYERS_INSTANTIATE_TYPE(c10::Half)
SKETCHLAYERS_INSTANTIATE_TYPE(c10::BFloat16)

}  // namespace sketchlayers::cuda
