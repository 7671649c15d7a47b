#include "plan/plan.h"

#include <cstdio>

namespace sketchlayers {
namespace {

// A graph is traced once for all sizes; it is planned for many pixels.
constexpr double kUnknownBatch = 64;
constexpr double kUnknownPixels = 1024;

// Time per multiply-add of the factored path over that of one large convolution. Its products are
// thin (few rows) and its intermediate maps go through memory. Measured on CPUs with float32; see
// `sketchlayers bench`.
constexpr double kThinProductCost = 1.6;
constexpr double kThinConvolutionCost = 3.0;

struct Costs {
  double dense;
  double form;  // forming W_hat once
  double factored;
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
  costs.factored = outputs * rank * (n * groups + d1);  // A (S1 x)
  if (mixes_space) {
    costs.factored += outputs * rank * positions * (n * groups + d1);  // S2 (B x)
  } else {
    costs.factored += inputs * rank * d2 + outputs * rank * positions * d1;
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
  const double product_cost =
      problem.kernel_h * problem.kernel_w == 1 ? kThinProductCost : kThinConvolutionCost;
  const double folded_time =
      problem.training ? 3 * costs.dense + 2 * costs.form : costs.dense + costs.form;
  const double factored_time = product_cost * costs.factored * (problem.training ? 3.5 : 1);
  plan.factored = factored_time < folded_time;
  const double chosen = plan.factored ? factored_time : folded_time;
  const double other = plan.factored ? folded_time : factored_time;
  plan.reason = explain(plan.factored, other > 0 ? chosen / other : 1);
  return plan;
}

}  // namespace sketchlayers
