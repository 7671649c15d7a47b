#include "ops/hashed_weight.h"

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

#include "composite/composed.h"
#include "cuda/kernel_checks.h"
#include "cuda/launches.h"
#include "ops/checks.h"

namespace sketchlayers {
namespace {

int multiprocessors() { return at::cuda::getCurrentDeviceProperties()->multiProcessorCount; }

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
  if (!cuda::uses_kernel(cuda::kHashedWeight, values.scalar_type())) {
    return hashed_weight_composition(values, seed, rows, columns, tables);
  }
  const at::Tensor source = values.contiguous();
  const at::Tensor weight = at::empty({rows, columns}, values.options());
  if (weight.numel() == 0) return weight;
  const cuda::HashedMatrix matrix = hashed_matrix(rows, columns);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, values.scalar_type(), "hashed_weight", [&] {
        C10_CUDA_CHECK(cuda::launch_hashed_weight(
            weight.mutable_data_ptr<scalar_t>(), source.const_data_ptr<scalar_t>(),
            seed.const_data_ptr<int64_t>(), matrix, device_tables(tables), multiprocessors(),
            at::cuda::getCurrentCUDAStream()));
      });
  return weight;
}

template <typename T>
at::Tensor hashed_sums(const at::Tensor& entries, const at::Tensor& seed, int64_t num_values,
                       const cuda::HashedMatrix& matrix, const HashTables& tables) {
  const at::Tensor largest = entries.abs().max().to(at::kFloat);  // NaN if one is
  const at::Tensor sums = at::zeros({num_values}, entries.options().dtype(at::kLong));
  const at::Tensor result = at::empty({num_values}, entries.options());
  C10_CUDA_CHECK(cuda::launch_hashed_sums(
      result.mutable_data_ptr<T>(), sums.mutable_data_ptr<int64_t>(), num_values,
      entries.const_data_ptr<T>(), largest.const_data_ptr<float>(), seed.const_data_ptr<int64_t>(),
      matrix, device_tables(tables), multiprocessors(), at::cuda::getCurrentCUDAStream()));
  return result;
}

at::Tensor hashed_weight_backward_cuda(const at::Tensor& grad, const at::Tensor& seed,
                                       int64_t num_values, at::IntArrayRef first,
                                       at::IntArrayRef buckets) {
  const HashTables tables = check_hashed_weight_backward(grad, seed, num_values, first, buckets);
  const c10::cuda::CUDAGuard guard(grad.device());
  if (grad.scalar_type() == at::kDouble ||  // more bits than whole numbers of 64 have
      !cuda::uses_kernel(cuda::kHashedWeightBackward, grad.scalar_type())) {
    return hashed_weight_backward_composed(grad, seed, num_values, tables);
  }
  if (grad.numel() == 0) return at::zeros({num_values}, grad.options());
  const at::Tensor entries = grad.contiguous();
  const cuda::HashedMatrix matrix = hashed_matrix(grad.size(0), grad.size(1));
  return for_type(grad.scalar_type(), [&](auto zero) {
    return hashed_sums<decltype(zero)>(entries, seed, num_values, matrix, tables);
  });
}

at::Tensor hash_entries_cuda(const at::Tensor& seed, int64_t rows, int64_t columns,
                             int64_t num_values, at::IntArrayRef first, at::IntArrayRef buckets) {
  const HashTables tables = check_hash_entries(seed, rows, columns, num_values, first, buckets);
  const c10::cuda::CUDAGuard guard(seed.device());
  if (!cuda::uses_kernel(cuda::kHashEntries, at::kLong)) {
    cuda::check_not_captured("hash_entries");
    return hash_entries_composed(seed, rows, columns, num_values, tables);
  }
  const at::Tensor result = at::empty({rows, columns}, seed.options());
  if (result.numel() == 0) return result;
  const cuda::HashedMatrix matrix = hashed_matrix(rows, columns);
  C10_CUDA_CHECK(cuda::launch_hash_entries(
      result.mutable_data_ptr<int64_t>(), seed.const_data_ptr<int64_t>(), matrix,
      device_tables(tables), multiprocessors(), at::cuda::getCurrentCUDAStream()));
  return result;
}

TORCH_LIBRARY_IMPL(sketchlayers, CUDA, m) {
  m.impl("hashed_weight", TORCH_FN(hashed_weight_cuda));
  m.impl("hashed_weight_backward", TORCH_FN(hashed_weight_backward_cuda));
  m.impl("hash_entries", TORCH_FN(hash_entries_cuda));
}

}  // namespace
}  // namespace sketchlayers
