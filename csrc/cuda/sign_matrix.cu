// The sign kernels. Each thread's body is a function of plain indices.
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "cuda/kernel_grid.h"
#include "cuda/launches.h"
#include "signs.h"

namespace sketchlayers::cuda {
namespace {

// One thread makes one block of 128 signs; four 32-bit words leave in one 16-byte store.
__global__ void sign_matrix_kernel(int4* packed, uint64_t seed, uint32_t matrix, int64_t rows,
                                   int64_t blocks) {
  for_each_item(rows * blocks, [&](int64_t i) {
    const PhiloxBlock bits = sign_block(seed, matrix, static_cast<uint32_t>(i / blocks),
                                        static_cast<uint32_t>(i % blocks));
    packed[i] = make_int4(static_cast<int>(bits.word[0]), static_cast<int>(bits.word[1]),
                          static_cast<int>(bits.word[2]), static_cast<int>(bits.word[3]));
  });
}

// One thread writes one sign; neighbouring threads write neighbouring columns and share a word.
template <typename T>
__global__ void unpack_signs_kernel(T* out, const int32_t* packed, int64_t rows, int64_t columns,
                                    int64_t words, int64_t start, T plus, T minus) {
  for_each_item(rows * columns, [&](int64_t i) {
    const int64_t at = start + i % columns;
    const uint32_t word = static_cast<uint32_t>(packed[i / columns * words + at / kSignsPerWord]);
    out[i] = (word >> (at % kSignsPerWord)) & 1u ? minus : plus;
  });
}

}  // namespace

cudaError_t launch_sign_matrix(int32_t* packed, uint64_t seed, uint32_t matrix, int64_t rows,
                               int64_t blocks, int multiprocessors, cudaStream_t stream) {
  sign_matrix_kernel<<<blocks_of_loop(rows * blocks, multiprocessors), kThreadsOfLoop, 0, stream>>>(
      reinterpret_cast<int4*>(packed), seed, matrix, rows, blocks);
  return cudaGetLastError();
}

template <typename T>
cudaError_t launch_unpack_signs(T* out, const int32_t* packed, int64_t rows, int64_t columns,
                                int64_t words, int64_t start, T scale, int multiprocessors,
                                cudaStream_t stream) {
  unpack_signs_kernel<T>
      <<<blocks_of_loop(rows * columns, multiprocessors), kThreadsOfLoop, 0, stream>>>(
          out, packed, rows, columns, words, start, scale, static_cast<T>(-scale));
  return cudaGetLastError();
}

#define SKETCHLAYERS_INSTANTIATE(T)                                                                \
  template cudaError_t launch_unpack_signs(T*, const int32_t*, int64_t, int64_t, int64_t, int64_t, \
                                           T, int, cudaStream_t);
SKETCHLAYERS_INSTANTIATE(float)
SKETCHLAYERS_INSTANTIATE(double)
SKETCHLAYERS_INSTANTIATE(c10::Half)
SKETCHLAYERS_INSTANTIATE(c10::BFloat16)

}  // namespace sketchlayers::cuda
