// The kernels of the fully connected layer: how their bodies meet threads.
#include "cuda/kernel_grid.h"
#include "cuda/launches.h"

namespace sketchlayers::cuda {
namespace {

extern __shared__ __align__(16) unsigned char narrow_shared[];

template <typename Body, typename Traits>
__global__ void __launch_bounds__(Traits::kThreads)
    narrow_linear_kernel(const __grid_constant__ NarrowLinearParams params) {
  DeviceBlock<typename Body::Warp> block;
  Body(params, narrow_shared, blockIdx.x, static_cast<int>(blockIdx.y)).run(block);
}

template <typename Body, typename Traits>
cudaError_t launch(const NarrowLinearParams& params, int64_t blocks, int64_t shared,
                   cudaStream_t stream) {
  const auto kernel = narrow_linear_kernel<Body, Traits>;
  if (const cudaError_t error = allow_shared(kernel)) return error;
  const dim3 grid(
      static_cast<unsigned int>(blocks),
      static_cast<unsigned int>((params.vectors + Traits::kVectors - 1) / Traits::kVectors));
  kernel<<<grid, Traits::kThreads, shared, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace

template <typename Traits>
cudaError_t launch_narrow_inner(const NarrowLinearParams& params, cudaStream_t stream) {
  using Body = NarrowInner<Traits>;
  return launch<Body, Traits>(params, (params.rank + Traits::kRows - 1) / Traits::kRows,
                              Body::shared_bytes(), stream);
}

template <typename Traits>
cudaError_t launch_narrow_outer(const NarrowLinearParams& params, cudaStream_t stream) {
  using Body = NarrowOuter<Traits>;
  return launch<Body, Traits>(params, (params.outputs + Traits::kOutputs - 1) / Traits::kOutputs,
                              Body::shared_bytes(params.rank), stream);
}

#define SKETCHLAYERS_INSTANTIATE(...)                                                             \
  template cudaError_t launch_narrow_inner<__VA_ARGS__>(const NarrowLinearParams&, cudaStream_t); \
  template cudaError_t launch_narrow_outer<__VA_ARGS__>(const NarrowLinearParams&, cudaStream_t);
#define SKETCHLAYERS_INSTANTIATE_TYPE(T)             \
  SKETCHLAYERS_INSTANTIATE(NarrowLinearTraits<T, 1>) \
  SKETCHLAYERS_INSTANTIATE(NarrowLinearTraits<T, 2>) \
  SKETCHLAYERS_INSTANTIATE(NarrowLinearTraits<T, 4>) \
  SKETCHLAYERS_INSTANTIATE(NarrowLinearTraits<T, 8>)
SKETCHLAYERS_INSTANTIATE_TYPE(float)
SKETCHLAYERS_INSTANTIATE_TYPE(c10::Half)
SKETCHLAYERS_INSTANTIATE_TYPE(c10::BFloat16)

}  // namespace sketchlayers::cuda
