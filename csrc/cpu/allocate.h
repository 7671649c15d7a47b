// Results of the CPU's kernels.
#pragma once

#include <ATen/ops/empty.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>

namespace sketchlayers::cpu {

// A new tensor. The system hands out large ones page by page at the first write, and for layers
// that are quicker than memory this takes most of their time; so large ones ask for large pages.
inline at::Tensor empty_result(at::IntArrayRef sizes, const at::TensorOptions& options,
                               at::MemoryFormat format) {
  const at::Tensor result = at::empty(sizes, options.memory_format(format));
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kLargePage = uintptr_t{1} << 21;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(result.data_ptr());
  const uintptr_t first = (begin + kLargePage - 1) / kLargePage * kLargePage;
  const uintptr_t last = (begin + result.nbytes()) / kLargePage * kLargePage;
  if (last >= first + 2 * kLargePage) {
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // advice: may fail
  }
#endif
  return result;
}

}  // namespace sketchlayers::cpu
