// Timing the paths of a call in the manner of torch.backends.cudnn.benchmark.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

#include "plan/plan.h"

namespace sketchlayers {

// The two paths of a call, for any input and factors.
struct PathCalls {
  using Layer =
      std::function<at::Tensor(const at::Tensor& x, const at::Tensor& s1, const at::Tensor& s2)>;
  Layer factored;
  std::function<at::Tensor(const at::Tensor& s1, const at::Tensor& s2)> form;
  std::function<at::Tensor(const at::Tensor& x, const at::Tensor& weight)> dense;
};

// Whether a call is to be timed: the planner has no times of it yet. Not on other devices than the
// CPU, while tracing, or under torch.use_deterministic_algorithms, which asks for the same bits in
// every process.
bool wants_benchmark(const PlanProblem& problem, const at::Tensor& input, const at::Tensor& s1,
                     const at::Tensor& s2);

// Times both paths and hands the times to the planner.
void benchmark_paths(const PlanProblem& problem, const PathCalls& calls, const at::Tensor& input,
                     const at::Tensor& s1, const at::Tensor& s2);

}  // namespace sketchlayers
