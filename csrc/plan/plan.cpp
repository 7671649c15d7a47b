#include "plan/plan.h"

#include <cstdio>

namespace sketchlayers {
namespace {

// A graph is traced once for all sizes; it is planned for many pixels.
constexpr double kUnknownBatch = 64;
constexpr double kUnknownPixels = 1024;

// Times in units of one multiply-add of a large convolution, measured on CPUs in float32 with
// `sketchlayers bench`: a multiply-add of the thin products, and one element of the maps that they
// read and write once.
constexpr double kThinProduct = 1.15;
constexpr double kElement = 25;
// Channel mixing takes two convolutions at either end, and they reorder what they read.
constexpr double kChannelPasses = 5;
// Convolutions compute whole vectors of output channels, however few are wanted.
constexpr int64_t kVectorChannels = 16;

struct Costs {
  double dense;
  double form;  // forming W_hat once
  double factored;
  double computed;  // factored, with what the vectors waste
  double elements;  // of the maps that the factored path reads and writes
};

Costs count(const PlanProblem& problem) {
  const double batch = problem.batch ? static_cast<double>(*problem.batch) : kUnknownBatch;
  const auto pixels = [](const std::optional<int64_t>& known) {
    return known ? static_cast<double>(*known) : kUnknownPixels;
  };
  const double outputs = batch * pixels(problem.output_pixels);
  const double inputs = batch * pixels(problem.input_pixels);
  const double positions = static_cast<double>(problem.kernel_h * problem.kernel_w);
  const double groups = static_cast<double>(problem.groups);
  const double rank = static_cast<double>(problem.sketch_rank);
  const double d1 = static_cast<double>(problem.out_channels);
  const double d2 = static_cast<double>(problem.in_channels);
  const double n = d2 / groups * positions;
  const bool mixes_space = problem.mixing == Mixing::kSpatial || positions == 1;

  Costs costs;
  costs.dense = outputs * n * d1;
  costs.form = rank * n * d1 * (mixes_space ? 1 + positions : 2);
  if (mixes_space) {
    costs.factored = outputs * rank * (1 + positions) * (n * groups + d1);
    costs.computed = costs.factored;
    costs.elements = inputs * d2 + outputs * d1;
  } else {
    const double first = outputs * (n * groups + d1);              // A (S1 x), for each row of S1
    const double second = inputs * d2 + outputs * positions * d1;  // S2 (B x), for each row of B
    const int64_t vectors = (problem.sketch_rank + kVectorChannels - 1) / kVectorChannels;
    costs.factored = rank * (first + second);
    costs.computed = static_cast<double>(vectors * kVectorChannels) * (first + second);
    costs.elements = kChannelPasses * (inputs * d2 + outputs * d1);
  }
  return costs;
}

std::string explain(bool factored, double ratio) {
  char text[160];
  std::snprintf(text, sizeof text,
                "the %s path is estimated to take %.2f times the time of the other",
                factored ? "factored" : "folded", ratio);
  return text;
}

}  // namespace

Plan plan(const PlanProblem& problem) {
  const Costs costs = count(problem);
  Plan plan;
  plan.dense_multiply_adds = costs.dense;
  plan.folded_multiply_adds = costs.dense + costs.form;
  plan.factored_multiply_adds = costs.factored;
  if (problem.needs_folded) {
    plan.reason = "a base or a frame needs the dense weight";
    return plan;
  }
  // Training: two more products of every kind, the adjoint of forming W_hat, and the factored
  // path's features again.
  const double products = problem.training ? 3 : 1;
  const double folded_time = products * costs.dense + (problem.training ? 2 : 1) * costs.form;
  const double factored_time = (problem.training ? 3.5 : 1) * kThinProduct * costs.computed +
                               products * kElement * costs.elements;
  plan.factored = factored_time < folded_time;
  const double chosen = plan.factored ? factored_time : folded_time;
  const double other = plan.factored ? folded_time : factored_time;
  plan.reason = explain(plan.factored, other > 0 ? chosen / other : 1);
  return plan;
}

}  // namespace sketchlayers
