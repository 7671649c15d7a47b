// Whether a kernel is used: it is checked at its first use, and the composition of ATen's
// operations computes where it is wrong. What a check does is handed in, so that tests run all of
// this without a GPU.
#pragma once

#include <c10/util/Exception.h>

#include <atomic>
#include <cstdlib>
#include <string>

namespace sketchlayers::cuda {

// The values of SKETCHLAYERS_CUDA_KERNELS.
enum class KernelMode {
  kCheck,  // kernels that pass their check are used
  kOn,     // all are used, without checks
  kOff,    // none is used
};

constexpr const char* kKernelModeVariable = "SKETCHLAYERS_CUDA_KERNELS";

// The mode that a value of the variable stands for; null and empty ask for checks.
inline KernelMode parse_kernel_mode(const char* value) {
  const std::string mode = value == nullptr ? "" : value;
  if (mode.empty() || mode == "check") return KernelMode::kCheck;
  if (mode == "on") return KernelMode::kOn;
  if (mode == "off") return KernelMode::kOff;
  TORCH_CHECK_VALUE(false, kKernelModeVariable, " must be check, on or off (got '", mode,
                    "'): set it to one of them, or unset it to have kernels checked at their first "
                    "use");
}

// The mode of this process. The environment is read once; a wrong value raises in every call.
inline KernelMode kernel_mode() {
  static const KernelMode mode = parse_kernel_mode(std::getenv(kKernelModeVariable));
  return mode;
}

// One kernel on one device. It is static and starts unchecked.
class FirstUse {
 public:
  // Whether the kernel may be used. The first call that finds `can_check()` true checks:
  // `check()` returns what is wrong with the kernel, empty where nothing is, or raises what the
  // launch raised. `warn(what is wrong)` is called at most once. Nobody waits: other threads, and
  // calls made by the check itself, are told not to use the kernel meanwhile.
  template <typename CanCheck, typename Check, typename Warn>
  bool allows(const CanCheck& can_check, const Check& check, const Warn& warn) {
    State state = state_.load(std::memory_order_acquire);
    if (state != State::kUnchecked) return state == State::kPassed;
    if (!can_check()) return false;
    if (!state_.compare_exchange_strong(state, State::kChecking)) return state == State::kPassed;
    std::string wrong;
    try {
      wrong = check();
    } catch (const c10::OutOfMemoryError&) {  // says nothing about the kernel
      state_ = State::kUnchecked;
      return false;
    } catch (const c10::Error& error) {
      wrong = error.what_without_backtrace();
    } catch (const std::exception& error) {
      wrong = error.what();
    }
    state_ = wrong.empty() ? State::kPassed : State::kFailed;
    if (!wrong.empty()) warn(wrong);
    return wrong.empty();
  }

 private:
  enum class State { kUnchecked, kChecking, kPassed, kFailed };
  std::atomic<State> state_{State::kUnchecked};
};

}  // namespace sketchlayers::cuda
