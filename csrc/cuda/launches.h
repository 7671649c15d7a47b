// The launches of all kernels. The files that compile kernels include none of PyTorch's headers,
// which nvcc would parse once for every architecture; the files that talk to ATen are compiled as
// C++. Every launch returns cudaSuccess or what went wrong, and runs on the current device.
//
// The classes of kernels differ between the two: a lane's values on the device, a warp's on the
// host. Only their sizes and their parameters may cross.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/channel_factors.h"
#include "cuda/channel_gradient.h"
#include "cuda/hashed_matrix.h"
#include "cuda/narrow_linear.h"
#include "cuda/weight_problems.h"

namespace sketchlayers::cuda {

constexpr int64_t kLargestGrid = (int64_t{1} << 31) - 1;  // blocks along a grid's first axis

// sign_matrix.cu. Grids are sized by `multiprocessors`, loops cover what they leave.
cudaError_t launch_sign_matrix(int32_t* packed, uint64_t seed, uint32_t matrix, int64_t rows,
                               int64_t blocks, int multiprocessors, cudaStream_t stream);
template <typename T>
cudaError_t launch_unpack_signs(T* out, const int32_t* packed, int64_t rows, int64_t columns,
                                int64_t words, int64_t start, T scale, int multiprocessors,
                                cudaStream_t stream);

// hashed_weight.cu
template <typename T>
cudaError_t launch_hashed_weight(T* weight, const T* values, const int64_t* seed,
                                 const HashedMatrix& matrix, const DeviceTables& tables,
                                 int multiprocessors, cudaStream_t stream);
cudaError_t launch_hash_entries(int64_t* entries, const int64_t* seed, const HashedMatrix& matrix,
                                const DeviceTables& tables, int multiprocessors,
                                cudaStream_t stream);
// Sums in units of fixed point, and those as values.
template <typename T>
cudaError_t launch_hashed_sums(T* values, int64_t* sums, int64_t count, const T* grad,
                               const float* largest, const int64_t* seed,
                               const HashedMatrix& matrix, const DeviceTables& tables,
                               int multiprocessors, cudaStream_t stream);

// sk_weight.cu, for the problems of weight_problems.h: the products, then the sums of their parts.
template <typename Problem>
cudaError_t launch_decoded_gemm(const Problem& problem, const Split& split, cudaStream_t stream);

// sk_linear.cu
template <typename Traits>
cudaError_t launch_narrow_inner(const NarrowLinearParams& params, cudaStream_t stream);
template <typename Traits>
cudaError_t launch_narrow_outer(const NarrowLinearParams& params, cudaStream_t stream);

// channel_conv.cu
template <typename Traits>
cudaError_t launch_channel_factors(const ChannelFactorsParams& params, int64_t items,
                                   cudaStream_t stream);
template <typename Traits>
cudaError_t launch_channel_conv(const ChannelConvParams& params, dim3 grid, int shared,
                                cudaStream_t stream);

// channel_gradient.cu. The features of two sets of images: blocks of the first, then of the second.
template <typename Traits>
cudaError_t launch_pixel_features(const PixelFeaturesParams& first,
                                  const PixelFeaturesParams& second, int64_t first_blocks,
                                  dim3 grid, cudaStream_t stream);
template <typename Traits>
cudaError_t launch_channel_gradient(const ChannelGradientParams& params, int first_chunks,
                                    dim3 grid, int shared, cudaStream_t stream);
template <typename T>
cudaError_t launch_gradient_sum(const GradientSumParams& params, cudaStream_t stream);

}  // namespace sketchlayers::cuda
