// The kernels of the dense weight and of its adjoint: how their bodies meet threads.
#include "cuda/kernel_grid.h"
#include "cuda/launches.h"

namespace sketchlayers::cuda {
namespace {

template <typename Problem>
__global__ void __launch_bounds__(DecodedGemmTraits::kThreads, 2)
    decoded_gemm_kernel(const __grid_constant__ Problem problem,
                        const __grid_constant__ Split split) {
  __shared__ __align__(16) float shared[2 * DecodedGemmTraits::kBufferFloats];
  DeviceBlock<typename DecodedGemm<Problem>::Warp> block;
  DecodedGemm<Problem>(problem, split, shared, blockIdx.x, blockIdx.y).run(block);
}

template <typename Problem>
__global__ void __launch_bounds__(256)
    add_parts_kernel(const __grid_constant__ Problem problem, const __grid_constant__ Split split) {
  for_each_item(problem.batches * problem.rows * problem.columns,
                [&](int64_t i) { add_parts(problem, split, i); });
}

}  // namespace

template <typename Problem>
cudaError_t launch_decoded_gemm(const Problem& problem, const Split& split, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned int>(tiles(problem)),
                  static_cast<unsigned int>(split.parts * problem.batches));
  decoded_gemm_kernel<Problem><<<grid, DecodedGemmTraits::kThreads, 0, stream>>>(problem, split);
  if (const cudaError_t error = cudaGetLastError(); error || split.parts == 1) return error;
  const int64_t elements = problem.batches * problem.rows * problem.columns;
  const int64_t blocks = (elements + kThreadsOfLoop - 1) / kThreadsOfLoop;
  add_parts_kernel<Problem>
      <<<static_cast<unsigned int>(blocks), kThreadsOfLoop, 0, stream>>>(problem, split);
  return cudaGetLastError();
}

#define SKETCHLAYERS_INSTANTIATE(T)                                                              \
  template cudaError_t launch_decoded_gemm(const WeightProblem<T>&, const Split&, cudaStream_t); \
  template cudaError_t launch_decoded_gemm(const FirstGradientProblem<T>&, const Split&,         \
                                           cudaStream_t);                                        \
  template cudaError_t launch_decoded_gemm(const SecondGradientProblem<T>&, const Split&,        \
                                           cudaStream_t);
SKETCHLAYERS_INSTANTIATE(float)
SKETCHLAYERS_INSTANTIATE(c10::Half)
SKETCHLAYERS_INSTANTIATE(c10::BFloat16)

}  // namespace sketchlayers::cuda
