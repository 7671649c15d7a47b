// For every other processor: vectors of 16 bytes, as SSE2 and NEON have them.
#include "cpu/vector_kernels.h"

#define SKETCHLAYERS_VECTOR_NAMESPACE portable
#define SKETCHLAYERS_LANES 4
#include "cpu/vector_kernels.inl"

namespace sketchlayers::cpu {

const VectorKernels& portable_kernels() { return portable::kKernels; }

}  // namespace sketchlayers::cpu
