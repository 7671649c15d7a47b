#include "plan/plan.h"

#include <cmath>
#include <cstdio>

namespace sketchlayers {
namespace {

// A graph is traced once for all sizes; it is planned for many pixels.
constexpr double kUnknownBatch = 64;
constexpr double kUnknownPixels = 1024;

struct Amounts {
  Amount dense;
  Amount form;  // forming W_hat once
  Amount factored;
  double waste;  // of the factored path's vectors
};

// What the factored kernels compute for each pixel that is wanted: they take pixels in whole
// vectors, from images with zeros between the rows where a stride keeps them from reading in place,
// and blocks of one or two vectors wait for their loads.
double vector_waste(const PlanProblem& problem, double batch, double pixels) {
  constexpr double kLanes = 16;
  double positions = pixels;
  if (problem.is_linear) {
    if (batch <= 4 && problem.blocks == 1) return 1;  // has a kernel without vectors of pixels
    positions = pixels = batch;
  } else if (problem.input_pixels != problem.output_pixels) {
    const double width = std::sqrt(pixels);
    positions = (width - 1) * (width + static_cast<double>(problem.kernel_w / 2)) + width;
  }
  const double vectors = std::ceil(positions / kLanes);
  const double waiting = vectors == 1 ? 1.7 : vectors == 2 ? 1.15 : 1;
  return vectors * kLanes * waiting / pixels;
}

Amounts count(const PlanProblem& problem) {
  const double batch = problem.batch ? static_cast<double>(*problem.batch) : kUnknownBatch;
  const auto pixels = [](const std::optional<int64_t>& known) {
    return known ? static_cast<double>(*known) : kUnknownPixels;
  };
  const double output_pixels = pixels(problem.output_pixels);
  const double outputs = batch * output_pixels;
  const double inputs = batch * pixels(problem.input_pixels);
  const double positions = static_cast<double>(problem.kernel_h * problem.kernel_w);
  const double rank = static_cast<double>(problem.sketch_rank);
  const double signed_rank = rank * static_cast<double>(problem.blocks);
  const double groups = static_cast<double>(problem.groups);
  const double d1 = static_cast<double>(problem.out_channels);
  const double d2 = static_cast<double>(problem.in_channels);
  const double n = d2 / groups * positions;
  const bool mixes_space = problem.mixing == Mixing::kSpatial || positions == 1;

  const double elements = inputs * d2 + outputs * d1;
  Amounts amounts;
  amounts.dense = {outputs * n * d1, elements, n * d1};
  amounts.form = {rank * n * d1 * (mixes_space ? 1 + positions : 2), 0, n * d1};
  amounts.factored = {0, elements, rank * positions * (d1 + d2)};
  const double first = outputs * (rank * n * groups + signed_rank * d1);  // A (S1 x)
  const double second = mixes_space                                       // S2 (B x)
                            ? outputs * positions * (signed_rank * n * groups + rank * d1)
                            : inputs * signed_rank * d2 + outputs * rank * positions * d1;
  amounts.factored.multiply_adds = first + second;
  amounts.waste = outputs > 0 ? vector_waste(problem, batch, output_pixels) : 1;
  return amounts;
}

Kind kind(const PlanProblem& problem) {
  if (problem.is_linear) return Kind::kLinear;
  if (problem.kernel_h * problem.kernel_w == 1) return Kind::kPointwise;
  return problem.mixing == Mixing::kSpatial ? Kind::kSpatial : Kind::kChannel;
}

std::string explain(const Plan& plan) {
  const auto milliseconds = [](double seconds) { return 1e3 * seconds; };
  char text[160];
  std::snprintf(text, sizeof text, "estimated %.3g ms against %.3g ms on the %s path",
                milliseconds(plan.factored ? plan.factored_seconds : plan.folded_seconds),
                milliseconds(plan.factored ? plan.folded_seconds : plan.factored_seconds),
                plan.factored ? "folded" : "factored");
  return text;
}

}  // namespace

Plan plan(const PlanProblem& problem) {
  const Amounts amounts = count(problem);
  Amount computed = amounts.factored;
  if (problem.processor == Processor::kCpu) computed.multiply_adds *= amounts.waste;
  const auto seconds = [&](Work work, const Amount& amount) {
    const CostKey key{problem.processor, problem.precision,    kind(problem), work,
                      problem.training,  problem.channels_last};
    return cost_model().cost(key).seconds(amount);
  };
  Plan plan;
  plan.dense_multiply_adds = amounts.dense.multiply_adds;
  plan.folded_multiply_adds = amounts.dense.multiply_adds;
  plan.factored_multiply_adds = amounts.factored.multiply_adds;
  plan.folded_seconds = seconds(Work::kDense, amounts.dense);
  plan.factored_vector_multiply_adds = computed.multiply_adds;
  plan.factored_seconds = seconds(Work::kFactored, computed);
  if (!problem.weight_ready) {
    plan.folded_multiply_adds += amounts.form.multiply_adds;
    plan.folded_seconds += seconds(Work::kForm, amounts.form);
  }
  if (problem.needs_folded) {
    plan.reason = "a frame needs the dense weight";
    return plan;
  }
  plan.factored = plan.factored_seconds < plan.folded_seconds;
  plan.reason = explain(plan);
  return plan;
}

}  // namespace sketchlayers
