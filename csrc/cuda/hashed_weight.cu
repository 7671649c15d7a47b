// The hash kernels. Each thread's body is a function of plain indices.
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "cuda/kernel_grid.h"
#include "cuda/launches.h"

namespace sketchlayers::cuda {
namespace {

// Calls visit for all blocks of the matrix.
template <typename Body>
__device__ void for_each_entry(const HashedMatrix& matrix, const int64_t* seed,
                               const DeviceTables& tables, const Body& body) {
  const uint64_t key = static_cast<uint64_t>(*seed);
  for_each_item(matrix.rows * matrix.blocks,
                [&](int64_t i) { matrix.visit(i, key, tables, body); });
}

template <typename T>
__global__ void hashed_weight_kernel(T* weight, const T* values, const int64_t* seed,
                                     HashedMatrix matrix, DeviceTables tables) {
  for_each_entry(matrix, seed, tables, [&](int64_t place, int64_t value, bool negative) {
    weight[place] = negative ? -values[value] : values[value];
  });
}

__global__ void hash_entries_kernel(int64_t* entries, const int64_t* seed, HashedMatrix matrix,
                                    DeviceTables tables) {
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
  for_each_item(count, [&](int64_t i) {
    const double sum = isnan(fixed.per_unit) ? NAN : fixed.number(static_cast<long long>(sums[i]));
    values[i] = static_cast<T>(static_cast<float>(sum));
  });
}

}  // namespace

template <typename T>
cudaError_t launch_hashed_weight(T* weight, const T* values, const int64_t* seed,
                                 const HashedMatrix& matrix, const DeviceTables& tables,
                                 int multiprocessors, cudaStream_t stream) {
  hashed_weight_kernel<<<blocks_of_loop(matrix.rows * matrix.blocks, multiprocessors),
                         kThreadsOfLoop, 0, stream>>>(weight, values, seed, matrix, tables);
  return cudaGetLastError();
}

cudaError_t launch_hash_entries(int64_t* entries, const int64_t* seed, const HashedMatrix& matrix,
                                const DeviceTables& tables, int multiprocessors,
                                cudaStream_t stream) {
  hash_entries_kernel<<<blocks_of_loop(matrix.rows * matrix.blocks, multiprocessors),
                        kThreadsOfLoop, 0, stream>>>(entries, seed, matrix, tables);
  return cudaGetLastError();
}

template <typename T>
cudaError_t launch_hashed_sums(T* values, int64_t* sums, int64_t count, const T* grad,
                               const float* largest, const int64_t* seed,
                               const HashedMatrix& matrix, const DeviceTables& tables,
                               int multiprocessors, cudaStream_t stream) {
  auto* units = reinterpret_cast<unsigned long long*>(sums);
  hashed_sums_kernel<<<blocks_of_loop(matrix.rows * matrix.blocks, multiprocessors), kThreadsOfLoop,
                       0, stream>>>(units, grad, largest, seed, matrix, tables);
  if (const cudaError_t error = cudaGetLastError()) return error;
  sums_to_values_kernel<<<blocks_of_loop(count, multiprocessors), kThreadsOfLoop, 0, stream>>>(
      values, units, largest, count, matrix.rows * matrix.columns);
  return cudaGetLastError();
}

#define SKETCHLAYERS_INSTANTIATE_WEIGHT(T)                                                     \
  template cudaError_t launch_hashed_weight(T*, const T*, const int64_t*, const HashedMatrix&, \
                                            const DeviceTables&, int, cudaStream_t);
SKETCHLAYERS_INSTANTIATE_WEIGHT(float)
SKETCHLAYERS_INSTANTIATE_WEIGHT(double)
SKETCHLAYERS_INSTANTIATE_WEIGHT(c10::Half)
SKETCHLAYERS_INSTANTIATE_WEIGHT(c10::BFloat16)

#define SKETCHLAYERS_INSTANTIATE_SUMS(T)                                                 \
  template cudaError_t launch_hashed_sums(T*, int64_t*, int64_t, const T*, const float*, \
                                          const int64_t*, const HashedMatrix&,           \
                                          const DeviceTables&, int, cudaStream_t);
SKETCHLAYERS_INSTANTIATE_SUMS(float)
SKETCHLAYERS_INSTANTIATE_SUMS(c10::Half)
SKETCHLAYERS_INSTANTIATE_SUMS(c10::BFloat16)

}  // namespace sketchlayers::cuda
