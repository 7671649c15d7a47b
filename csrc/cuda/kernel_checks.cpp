#include "cuda/kernel_checks.h"

#include <ATen/Parallel.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <omp.h>

#include <algorithm>
#include <string>

#include "cuda/kernel_families.h"

namespace sketchlayers::cuda {
namespace {

constexpr size_t kMostTypes = 4;  // of a family

thread_local std::optional<KernelMode> mode_of_thread;

at::Device current_device() { return {at::kCUDA, c10::cuda::current_device()}; }

bool is_capturing() {
  return c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
}

FirstUse& first_use(KernelFamilyIndex family, at::ScalarType type) {
  static FirstUse uses[kKernelFamilies][kMostTypes][C10_COMPILE_TIME_MAX_GPUS];
  const auto& types = kernel_families()[family].types;
  const auto place = std::find(types.begin(), types.end(), type) - types.begin();
  return uses[family][place][c10::cuda::current_device()];
}

// A comparison waits for its results, which is no mistake of the caller's.
class AllowSynchronization {
 public:
  AllowSynchronization() : before_(c10::cuda::warning_state().get_sync_debug_mode()) {
    c10::cuda::warning_state().set_sync_debug_mode(c10::cuda::SyncDebugMode::L_DISABLED);
  }
  ~AllowSynchronization() { c10::cuda::warning_state().set_sync_debug_mode(before_); }

 private:
  c10::cuda::SyncDebugMode before_;
};

// The composition is so small that waking other threads takes longer; it is this thread's setting.
class OneThread {
 public:
  OneThread() : before_(at::get_num_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }

 private:
  int before_;
};

std::string what_is_wrong(const KernelFamily& family, at::ScalarType type) {
  const Comparison found = compare_kernels(family, type);
  if (found.passes()) return {};
  return c10::str("its results differ from those of PyTorch's operations by ", found.difference,
                  " of the largest, which may be ", found.tolerance);
}

void warn(const KernelFamily& family, at::ScalarType type, const std::string& wrong) {
  TORCH_WARN("sketchlayers: the CUDA kernel ", family.name, " in ", type, " is not used on ",
             current_device(), " (", at::cuda::getCurrentDeviceProperties()->name,
             "), since in a check ", wrong.substr(0, wrong.find('\n')),
             ". PyTorch's operations compute in its place until this process ends. Please report "
             "it with the output of `sketchlayers doctor --device cuda`. ",
             kKernelModeVariable, "=off uses no kernel and does not warn, ", kKernelModeVariable,
             "=on uses all of them all the same.");
}

}  // namespace

bool uses_kernel(KernelFamilyIndex family, at::ScalarType type) {
  const KernelMode mode = mode_of_thread ? *mode_of_thread : kernel_mode();
  if (mode != KernelMode::kCheck) return mode == KernelMode::kOn;
  const KernelFamily& checked = kernel_families()[family];
  return first_use(family, type)
      .allows([] { return !is_capturing(); }, [&] { return what_is_wrong(checked, type); },
              [&](const std::string& wrong) { warn(checked, type, wrong); });
}

void check_not_captured(const char* op) {
  TORCH_CHECK(
      !is_capturing(), op,
      ": a call that is captured in a CUDA graph must be computed by its CUDA kernel, since "
      "the composition copies from the CPU (got a kernel that is not used, or has not been "
      "checked yet): call it once before the capture, or set ",
      kKernelModeVariable, "=on");
}

KernelModeGuard::KernelModeGuard(KernelMode mode) : before_(mode_of_thread) {
  mode_of_thread = mode;
}
KernelModeGuard::~KernelModeGuard() { mode_of_thread = before_; }

Comparison compare_kernels(const KernelFamily& family, at::ScalarType type) {
  const KernelModeGuard kernels(KernelMode::kOn);
  const AllowSynchronization allowed;
  const OneThread alone;
  // What other threads capture does not forbid this one to allocate and to wait.
  const c10::cuda::CUDAStreamCaptureModeGuard relaxed(cudaStreamCaptureModeRelaxed);
  return compare(family, type, current_device());
}

std::function<void(ComputedBy)> kernel_step(const KernelFamily& family, at::ScalarType type) {
  const KernelProblem problem = family.problems(/*large=*/true).front();
  const ProblemOperands operands = placed(problem, type, current_device());
  return [problem, operands](ComputedBy by) {
    const KernelModeGuard kernels(KernelMode::kOn);
    problem.compute(operands, by);
  };
}

}  // namespace sketchlayers::cuda
