// Times of calls that were measured, which the planner goes by in place of its model: see
// ops/benchmark.h. Plain C++.
#pragma once

#include <optional>

#include "plan/plan.h"

namespace sketchlayers {

// Seconds: forward, or forward and backward in training, where forming is part of the dense path.
struct PathTimes {
  double factored;
  double dense;
  double form;
};

// Whether the first call of a shape is to time the paths; the former setting.
bool set_benchmark(bool enabled);
bool benchmark_enabled();

// Of a call like this one, whether its weight is ready or not.
std::optional<PathTimes> measured_times(const PlanProblem& problem);

// The first ones of a call stay, so that a process computes it in one way.
void record_times(const PlanProblem& problem, const PathTimes& times);
void forget_times();

}  // namespace sketchlayers
