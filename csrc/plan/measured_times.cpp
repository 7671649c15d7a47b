#include "plan/measured_times.h"

#include <array>
#include <atomic>
#include <map>
#include <mutex>

namespace sketchlayers {
namespace {

std::atomic<bool> enabled{false};

// Everything that a call's time depends on.
using Key = std::array<int64_t, 17>;

Key key(const PlanProblem& problem) {
  const auto number = [](const std::optional<int64_t>& size) { return size.value_or(-1); };
  return {number(problem.batch),
          problem.in_channels,
          problem.out_channels,
          problem.groups,
          problem.kernel_h,
          problem.kernel_w,
          number(problem.input_pixels),
          number(problem.output_pixels),
          problem.sketch_rank,
          problem.blocks,
          static_cast<int64_t>(problem.mixing),
          problem.is_linear,
          static_cast<int64_t>(problem.processor),
          static_cast<int64_t>(problem.precision),
          problem.training,
          problem.channels_last,
          problem.threads};
}

class Times {
 public:
  std::optional<PathTimes> find(const PlanProblem& problem) {
    if (empty_.load(std::memory_order_acquire)) return std::nullopt;
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = times_.find(key(problem));
    return found == times_.end() ? std::nullopt : std::make_optional(found->second);
  }
  void add(const PlanProblem& problem, const PathTimes& times) {
    const std::lock_guard<std::mutex> lock(mutex_);
    times_.emplace(key(problem), times);
    empty_.store(false, std::memory_order_release);
  }
  void clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    times_.clear();
    empty_.store(true, std::memory_order_release);
  }

 private:
  std::mutex mutex_;
  std::map<Key, PathTimes> times_;
  std::atomic<bool> empty_{true};  // what most processes find, without waiting for another thread
};

Times& times() {
  static Times instance;
  return instance;
}

}  // namespace

bool set_benchmark(bool on) { return enabled.exchange(on); }
bool benchmark_enabled() { return enabled.load(std::memory_order_relaxed); }

std::optional<PathTimes> measured_times(const PlanProblem& problem) {
  return times().find(problem);
}
void record_times(const PlanProblem& problem, const PathTimes& measured) {
  times().add(problem, measured);
}
void forget_times() { times().clear(); }

}  // namespace sketchlayers
