// The sign kernels on raw pointers. Each thread's body is a function of plain indices.
#pragma once

#include "signs.h"

namespace sketchlayers::cuda {

// One thread makes one block of 128 signs; four 32-bit words leave in one 16-byte store.
static __global__ void sign_matrix_kernel(int4* packed, uint64_t seed, uint32_t matrix,
                                          int64_t rows, int64_t blocks) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < rows * blocks;
       i += stride) {
    const PhiloxBlock bits = sign_block(seed, matrix, static_cast<uint32_t>(i / blocks),
                                        static_cast<uint32_t>(i % blocks));
    packed[i] = make_int4(static_cast<int>(bits.word[0]), static_cast<int>(bits.word[1]),
                          static_cast<int>(bits.word[2]), static_cast<int>(bits.word[3]));
  }
}

// One thread writes one sign; neighbouring threads write neighbouring columns and share a word.
template <typename T>
__global__ void unpack_signs_kernel(T* out, const int32_t* packed, int64_t rows, int64_t columns,
                                    int64_t words, int64_t start, T plus, T minus) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < rows * columns;
       i += stride) {
    const int64_t at = start + i % columns;
    const uint32_t word = static_cast<uint32_t>(packed[i / columns * words + at / kSignsPerWord]);
    out[i] = (word >> (at % kSignsPerWord)) & 1u ? minus : plus;
  }
}

}  // namespace sketchlayers::cuda
