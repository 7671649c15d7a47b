#include "cpu/vector_kernels.h"

#include <ATen/Version.h>

#include <string>

namespace sketchlayers::cpu {

const VectorKernels& vector_kernels() {
  static const VectorKernels& best = []() -> const VectorKernels& {
#if defined(__x86_64__)
    const std::string capability = at::get_cpu_capability();
    if (capability == "AVX512") return avx512_kernels();
    if (capability == "AVX2") return avx2_kernels();
#endif
    return portable_kernels();
  }();
  return best;
}

}  // namespace sketchlayers::cpu
