// The hash kernels on raw pointers. Each thread's body is a function of plain indices.
#pragma once

#include "cuda/hashed_matrix.h"

namespace sketchlayers::cuda {

// Calls visit for all blocks of the matrix.
template <typename Body>
__device__ void for_each_entry(const HashedMatrix& matrix, const int64_t* seed,
                               const DeviceTables& tables, const Body& body) {
  const uint64_t key = static_cast<uint64_t>(*seed);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       i < matrix.rows * matrix.blocks; i += stride) {
    matrix.visit(i, key, tables, body);
  }
}

template <typename T>
__global__ void hashed_weight_kernel(T* weight, const T* values, const int64_t* seed,
                                     HashedMatrix matrix, DeviceTables tables) {
  for_each_entry(matrix, seed, tables, [&](int64_t place, int64_t value, bool negative) {
    weight[place] = negative ? -values[value] : values[value];
  });
}

static __global__ void hash_entries_kernel(int64_t* entries, const int64_t* seed,
                                           HashedMatrix matrix, DeviceTables tables) {
  for_each_entry(matrix, seed, tables, [&](int64_t place, int64_t value, bool negative) {
    entries[place] = negative ? ~value : value;
  });
}

template <typename T>
__global__ void hashed_sums_kernel(unsigned long long* sums, const T* grad, const float* largest,
                                   const int64_t* seed, HashedMatrix matrix, DeviceTables tables) {
  const FixedPoint fixed = FixedPoint::of(*largest, matrix.rows * matrix.columns);
  if (isnan(fixed.per_unit)) return;
  for_each_entry(matrix, seed, tables, [&](int64_t place, int64_t value, bool negative) {
    const double change = static_cast<double>(static_cast<float>(grad[place]));
    const long long units = fixed.units(negative ? -change : change);
    atomicAdd(sums + value, static_cast<unsigned long long>(units));  // wraps as signed ones do
  });
}

template <typename T>
__global__ void sums_to_values_kernel(T* values, const unsigned long long* sums,
                                      const float* largest, int64_t count, int64_t entries) {
  const FixedPoint fixed = FixedPoint::of(*largest, entries);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += stride) {
    const double sum = isnan(fixed.per_unit) ? NAN : fixed.number(static_cast<long long>(sums[i]));
    values[i] = static_cast<T>(static_cast<float>(sum));
  }
}

}  // namespace sketchlayers::cuda
