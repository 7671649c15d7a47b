// What operators ask before they launch a kernel, and what `sketchlayers doctor` measures.
#pragma once

#include <c10/core/ScalarType.h>

#include <functional>
#include <optional>

#include "cuda/first_use.h"

namespace sketchlayers::cuda {

enum class ComputedBy;  // kernel_families.h
struct Comparison;
struct KernelFamily;

// The places of the families in `kernel_families()`.
enum KernelFamilyIndex {
  kChannelConv,
  kChannelConvInputGradient,
  kChannelConvFactorGradients,
  kNarrowLinear,
  kWeight,
  kWeightBackward,
  kHashedWeight,
  kHashedWeightBackward,
  kHashEntries,
  kSignMatrix,
  kUnpackSigns,
  kKernelFamilies,
};

// Whether the kernels of a family compute in this type on the current device. The first call in a
// process compares them with the composition of ATen's operations and warns where they differ.
// While a CUDA graph is captured nothing can be compared, and the composition takes the place of a
// kernel that has not been.
bool uses_kernel(KernelFamilyIndex family, at::ScalarType type);

// Raises where a CUDA graph is captured: before compositions that copy from the CPU.
void check_not_captured(const char* op);

// The mode of this thread, in place of the process's.
class KernelModeGuard {
 public:
  explicit KernelModeGuard(KernelMode mode);
  ~KernelModeGuard();
  KernelModeGuard(const KernelModeGuard&) = delete;
  KernelModeGuard& operator=(const KernelModeGuard&) = delete;

 private:
  std::optional<KernelMode> before_;
};

// The kernels on the current device against the composition; raises what a launch raises.
Comparison compare_kernels(const KernelFamily& family, at::ScalarType type);

// One call of the family's large problem on the current device, by its kernels or by the
// composition of operations, for which all other families use their kernels.
std::function<void(ComputedBy)> kernel_step(const KernelFamily& family, at::ScalarType type);

}  // namespace sketchlayers::cuda
