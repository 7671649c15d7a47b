// The kernels for the gradients of the factors: how their bodies meet threads.
#include "cuda/kernel_grid.h"
#include "cuda/launches.h"

namespace sketchlayers::cuda {
namespace {

extern __shared__ __align__(16) unsigned char gradient_shared[];

// The features of two sets of images in one launch: blocks of the first, then of the second.
template <typename Traits>
__global__ void __launch_bounds__(Traits::kThreads, 2)
    pixel_features_kernel(const __grid_constant__ PixelFeaturesParams first,
                          const __grid_constant__ PixelFeaturesParams second,
                          int64_t first_blocks) {
  DeviceBlock<typename PixelFeatures<Traits>::Warp> block;
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
  DeviceBlock<typename Body::Warp> block;
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
  for_each_item(params.elements, [&](int64_t i) { add_splits<T>(params, i); });
}

}  // namespace

template <typename Traits>
cudaError_t launch_pixel_features(const PixelFeaturesParams& first,
                                  const PixelFeaturesParams& second, int64_t first_blocks,
                                  dim3 grid, cudaStream_t stream) {
  constexpr int kShared = PixelFeatures<Traits>::kSharedBytes;
  const auto kernel = pixel_features_kernel<Traits>;
  if (const cudaError_t error = allow_shared(kernel)) return error;
  kernel<<<grid, Traits::kThreads, kShared, stream>>>(first, second, first_blocks);
  return cudaGetLastError();
}

template <typename Traits>
cudaError_t launch_channel_gradient(const ChannelGradientParams& params, int first_chunks,
                                    dim3 grid, int shared, cudaStream_t stream) {
  const auto kernel = channel_gradient_kernel<Traits>;
  if (const cudaError_t error = allow_shared(kernel)) return error;
  kernel<<<grid, Traits::kThreads, shared, stream>>>(params, first_chunks);
  return cudaGetLastError();
}

template <typename T>
cudaError_t launch_gradient_sum(const GradientSumParams& params, cudaStream_t stream) {
  const int64_t blocks = ceil_divide(params.elements, kThreadsOfLoop);
  gradient_sum_kernel<T><<<static_cast<unsigned int>(blocks), kThreadsOfLoop, 0, stream>>>(params);
  return cudaGetLastError();
}

#define SKETCHLAYERS_INSTANTIATE(...)                                                       \
  template cudaError_t launch_pixel_features<ChannelGradientTraits<__VA_ARGS__>>(           \
      const PixelFeaturesParams&, const PixelFeaturesParams&, int64_t, dim3, cudaStream_t); \
  template cudaError_t launch_channel_gradient<ChannelGradientTraits<__VA_ARGS__>>(         \
      const ChannelGradientParams&, int, dim3, int, cudaStream_t);
#define SKETCHLAYERS_INSTANTIATE_TYPE(T) \
  SKETCHLAYERS_INSTANTIATE(T, 1)         \
  SKETCHLAYERS_INSTANTIATE(T, 2)         \
  SKETCHLAYERS_INSTANTIATE(T, 3)         \
  SKETCHLAYERS_INSTANTIATE(T, 4)         \
  template cudaError_t launch_gradient_sum<T>(const GradientSumParams&, cudaStream_t);
SKETCHLAYERS_INSTANTIATE_TYPE(c10::Half)
SKETCHLAYERS_INSTANTIATE_TYPE(c10::BFloat16)

}  // namespace sketchlayers::cuda
