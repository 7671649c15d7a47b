// What the files that compile kernels share.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

namespace sketchlayers::cuda {

constexpr int kThreadsOfLoop = 256;  // of a block whose threads each take one item at a time

// Blocks for a loop over items in steps of the grid, which covers what a grid of this size does
// not.
inline unsigned int blocks_of_loop(int64_t items, int multiprocessors) {
  const int64_t wanted = (items + kThreadsOfLoop - 1) / kThreadsOfLoop;
  return static_cast<unsigned int>(std::min(wanted, int64_t{32} * multiprocessors));
}

// Calls body(i) for the items of this thread.
template <typename Body>
__device__ void for_each_item(int64_t items, const Body& body) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < items;
       i += stride) {
    body(i);
  }
}

// Lets a kernel have as much dynamic shared memory as a block can: the same for every launch, since
// other threads may launch it at the same time and all set one attribute.
template <typename Kernel>
cudaError_t allow_shared(Kernel kernel) {
  int device = 0, bytes = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  if (const cudaError_t error =
          cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device)) {
    return error;
  }
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

}  // namespace sketchlayers::cuda
