#include <ATen/Dispatch.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/max.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <algorithm>

#include "composite/hashed_weight.h"
#include "cuda/hash_kernels.cuh"
#include "ops/hashed_weight.h"

namespace sketchlayers {
namespace {

constexpr int kThreads = 256;

// A grid-stride loop covers what a grid of this size does not.
unsigned int grid_for(int64_t items) {
  const int64_t wanted = (items + kThreads - 1) / kThreads;
  const int64_t most =
      32 * static_cast<int64_t>(at::cuda::getCurrentDeviceProperties()->multiProcessorCount);
  return static_cast<unsigned int>(std::min(wanted, most));
}

cuda::DeviceTables device_tables(const HashTables& tables) {
  cuda::DeviceTables result{};
  result.taps = static_cast<int>(tables.taps());
  std::copy(tables.first.begin(), tables.first.end(), result.first);
  std::copy(tables.buckets.begin(), tables.buckets.end(), result.buckets);
  return result;
}

cuda::HashedMatrix hashed_matrix(int64_t rows, int64_t columns) {
  return {rows, columns, (columns + kHashesPerBlock - 1) / kHashesPerBlock};
}

at::Tensor hashed_weight_cuda(const at::Tensor& values, const at::Tensor& seed, int64_t rows,
                              int64_t columns, at::IntArrayRef first, at::IntArrayRef buckets) {
  const HashTables tables = check_hashed_weight(values, seed, rows, columns, first, buckets);
  const c10::cuda::CUDAGuard guard(values.device());
  const at::Tensor source = values.contiguous();
  const at::Tensor weight = at::empty({rows, columns}, values.options());
  if (weight.numel() == 0) return weight;
  const cuda::HashedMatrix matrix = hashed_matrix(rows, columns);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, values.scalar_type(), "hashed_weight", [&] {
        cuda::hashed_weight_kernel<<<grid_for(rows * matrix.blocks), kThreads, 0,
                                     at::cuda::getCurrentCUDAStream()>>>(
            weight.mutable_data_ptr<scalar_t>(), source.const_data_ptr<scalar_t>(),
            seed.const_data_ptr<int64_t>(), matrix, device_tables(tables));
        C10_CUDA_KERNEL_LAUNCH_CHECK();
      });
  return weight;
}

at::Tensor hashed_weight_backward_cuda(const at::Tensor& grad, const at::Tensor& seed,
                                       int64_t num_values, at::IntArrayRef first,
                                       at::IntArrayRef buckets) {
  const HashTables tables = check_hashed_weight_backward(grad, seed, num_values, first, buckets);
  if (grad.scalar_type() == at::kDouble) {  // more bits than whole numbers of 64 have
    return hashed_weight_backward_composed(grad, seed, num_values, tables);
  }
  const c10::cuda::CUDAGuard guard(grad.device());
  if (grad.numel() == 0) return at::zeros({num_values}, grad.options());
  const at::Tensor entries = grad.contiguous();
  const cuda::HashedMatrix matrix = hashed_matrix(grad.size(0), grad.size(1));
  const at::Tensor largest = entries.abs().max().to(at::kFloat);  // NaN if one is
  const at::Tensor sums = at::zeros({num_values}, grad.options().dtype(at::kLong));
  auto* units = reinterpret_cast<unsigned long long*>(sums.mutable_data_ptr<int64_t>());
  const at::Tensor result = at::empty({num_values}, grad.options());
  const auto stream = at::cuda::getCurrentCUDAStream();
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, grad.scalar_type(), "hashed_weight_backward", [&] {
        cuda::hashed_sums_kernel<<<grid_for(matrix.rows * matrix.blocks), kThreads, 0, stream>>>(
            units, entries.const_data_ptr<scalar_t>(), largest.const_data_ptr<float>(),
            seed.const_data_ptr<int64_t>(), matrix, device_tables(tables));
        C10_CUDA_KERNEL_LAUNCH_CHECK();
        cuda::sums_to_values_kernel<<<grid_for(num_values), kThreads, 0, stream>>>(
            result.mutable_data_ptr<scalar_t>(), units, largest.const_data_ptr<float>(), num_values,
            entries.numel());
        C10_CUDA_KERNEL_LAUNCH_CHECK();
      });
  return result;
}

at::Tensor hash_entries_cuda(const at::Tensor& seed, int64_t rows, int64_t columns,
                             int64_t num_values, at::IntArrayRef first, at::IntArrayRef buckets) {
  const HashTables tables = check_hash_entries(seed, rows, columns, num_values, first, buckets);
  const c10::cuda::CUDAGuard guard(seed.device());
  const at::Tensor result = at::empty({rows, columns}, seed.options());
  if (result.numel() == 0) return result;
  const cuda::HashedMatrix matrix = hashed_matrix(rows, columns);
  cuda::hash_entries_kernel<<<grid_for(rows * matrix.blocks), kThreads, 0,
                              at::cuda::getCurrentCUDAStream()>>>(
      result.mutable_data_ptr<int64_t>(), seed.const_data_ptr<int64_t>(), matrix,
      device_tables(tables));
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return result;
}

TORCH_LIBRARY_IMPL(sketchlayers, CUDA, m) {
  m.impl("hashed_weight", TORCH_FN(hashed_weight_cuda));
  m.impl("hashed_weight_backward", TORCH_FN(hashed_weight_backward_cuda));
  m.impl("hash_entries", TORCH_FN(hash_entries_cuda));
}

}  // namespace
}  // namespace sketchlayers
