#include "ops/timing.h"

#include <ATen/Parallel.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

#include <algorithm>
#include <chrono>

namespace sketchlayers {

bool may_time() {
  using c10::impl::tls_is_dispatch_key_included;
  return !at::in_parallel_region() && !c10::impl::dispatch_mode_enabled() &&
         !tls_is_dispatch_key_included(c10::DispatchKey::Tracer) &&
         !tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
}

double seconds_of(const Step& step) {
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  step();
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

double median(std::vector<double> times) {
  const auto middle = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
  std::nth_element(times.begin(), middle, times.end());
  return *middle;
}

// Medians of rounds in which each step runs once, after one that warms up.

}  // namespace sketchlayers
