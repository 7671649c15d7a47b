#include "cpu/vector_kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

// Headers come before: what they define inline must run everywhere.
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#endif

#define SKETCHLAYERS_VECTOR_NAMESPACE avx512
#define SKETCHLAYERS_LANES 16
#include "cpu/vector_kernels.inl"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace sketchlayers::cpu {

const VectorKernels& avx512_kernels() { return avx512::kKernels; }

}  // namespace sketchlayers::cpu

#endif  // x86-64
