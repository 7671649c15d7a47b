#include "plan/plan.h"

#include <cmath>
#include <cstdio>

#include "plan/measured_times.h"

namespace sketchlayers {
namespace {

// A graph is traced once for all sizes; it is planned for many pixels.
constexpr double kUnknownBatch = 64;
constexpr double kUnknownPixels = 1024;

// A kept weight makes a call PyTorch's own, which is as fast as it is; an estimate of another path
// can be off by a tenth or more, and has to promise a gain.
constexpr double kSurelyFaster = 0.95;

struct Amounts {
  Amount dense;
  Amount form;  // forming W_hat once
  Amount factored;
  Amount computed;  // of the factored path, with the lanes that go to waste
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

int64_t positions(const PlanProblem& problem) { return problem.kernel_h * problem.kernel_w; }

bool takes_panels(const PlanProblem& problem) {
  const bool mixes_channels = problem.mixing == Mixing::kChannel || positions(problem) == 1;
  return problem.processor == Processor::kAmx && problem.precision == Precision::kBFloat16 &&
         mixes_channels && problem.groups == 1 && problem.blocks == 1;
}

// What panels compute: whole tiles of features, those of every tap at all inputs. Handing a feature
// from pixel to pixel takes about as long as reading four numbers of an image.
Amount panel_amount(const PlanProblem& problem, double inputs, double outputs, Amount amount) {
  constexpr double kHandedOn = 4;
  const auto whole = [](double size, double step) { return std::ceil(size / step) * step; };
  const double rank = static_cast<double>(problem.sketch_rank);
  const double features = rank * static_cast<double>(positions(problem) + 1);
  const auto d1 = static_cast<double>(problem.out_channels);
  const auto d2 = static_cast<double>(problem.in_channels);
  const double taps = static_cast<double>(positions(problem));
  amount.multiply_adds =
      problem.is_linear ? 2 * outputs * (d2 * whole(rank, 16) + whole(rank, 32) * d1)
                        : inputs * d2 * whole(features, 16) + outputs * whole(features, 32) * d1;
  amount.elements += kHandedOn * outputs * taps * whole(rank, 16);
  return amount;
}

Amounts count(const PlanProblem& problem) {
  const double batch = problem.batch ? static_cast<double>(*problem.batch) : kUnknownBatch;
  const auto pixels = [](const std::optional<int64_t>& known) {
    return known ? static_cast<double>(*known) : kUnknownPixels;
  };
  const double output_pixels = pixels(problem.output_pixels);
  const double outputs = batch * output_pixels;
  const double inputs = batch * pixels(problem.input_pixels);
  const double taps = static_cast<double>(positions(problem));
  const double rank = static_cast<double>(problem.sketch_rank);
  const double signed_rank = rank * static_cast<double>(problem.blocks);
  const double groups = static_cast<double>(problem.groups);
  const double d1 = static_cast<double>(problem.out_channels);
  const double d2 = static_cast<double>(problem.in_channels);
  const double n = d2 / groups * taps;
  const bool mixes_space = problem.mixing == Mixing::kSpatial || taps == 1;

  const double elements = inputs * d2 + outputs * d1;
  Amounts amounts;
  amounts.dense = {outputs * n * d1, elements, n * d1};
  amounts.form = {rank * n * d1 * (mixes_space ? 1 + taps : 2), 0, n * d1};
  amounts.factored = {0, elements, rank * taps * (d1 + d2)};
  const double first = outputs * (rank * n * groups + signed_rank * d1);  // A (S1 x)
  const double second = mixes_space                                       // S2 (B x)
                            ? outputs * taps * (signed_rank * n * groups + rank * d1)
                            : inputs * signed_rank * d2 + outputs * rank * taps * d1;
  amounts.factored.multiply_adds = first + second;
  amounts.computed = amounts.factored;
  if (takes_panels(problem)) {
    amounts.computed = panel_amount(problem, inputs, outputs, amounts.factored);
  } else if (problem.processor != Processor::kCuda && outputs > 0) {
    amounts.computed.multiply_adds *= vector_waste(problem, batch, output_pixels);
  }
  return amounts;
}

Kind kind(const PlanProblem& problem) {
  if (problem.is_linear) return Kind::kLinear;
  if (positions(problem) == 1) return Kind::kPointwise;
  return problem.mixing == Mixing::kSpatial ? Kind::kSpatial : Kind::kChannel;
}

std::string explain(const Plan& plan) {
  const auto milliseconds = [](double seconds) { return 1e3 * seconds; };
  char text[160];
  std::snprintf(text, sizeof text, "%s %.3g ms against %.3g ms on the %s path",
                plan.measured ? "measured" : "estimated",
                milliseconds(plan.factored ? plan.factored_seconds : plan.folded_seconds),
                milliseconds(plan.factored ? plan.folded_seconds : plan.factored_seconds),
                plan.factored ? "folded" : "factored");
  const bool near = !plan.factored && plan.factored_seconds < plan.folded_seconds;
  return std::string(text) + (near ? ", too near to be surely faster" : "");
}

}  // namespace

Plan plan(const PlanProblem& problem) {
  const Amounts amounts = count(problem);
  const auto seconds = [&](Work work, const Amount& amount) {
    const CostKey key{problem.processor, problem.precision, work, kind(problem),
                      problem.channels_last};
    const double seconds = cost_model().cost(key, problem.training).seconds(amount);
    const bool differs = work == Work::kDense && !cost_model().is_of_this_machine(key);
    return differs ? problem.dense_slowdown * seconds : seconds;
  };
  Plan plan;
  plan.dense_multiply_adds = amounts.dense.multiply_adds;
  plan.folded_multiply_adds = amounts.dense.multiply_adds;
  plan.factored_multiply_adds = amounts.factored.multiply_adds;
  plan.computed_multiply_adds = amounts.computed.multiply_adds;
  plan.computed_elements = amounts.computed.elements;
  plan.panels = takes_panels(problem);
  const Work factored = plan.panels ? Work::kPanels : Work::kFactored;
  const std::optional<PathTimes> measured = measured_times(problem);
  plan.measured = measured.has_value();
  const PathTimes times = measured.value_or(PathTimes{seconds(factored, amounts.computed),
                                                      seconds(Work::kDense, amounts.dense),
                                                      seconds(Work::kForm, amounts.form)});
  plan.factored_seconds = times.factored;
  plan.folded_seconds = times.dense;
  if (!problem.weight_ready) {
    plan.folded_multiply_adds += amounts.form.multiply_adds;
    plan.folded_seconds += times.form;
  }
  if (problem.needs_folded) {
    plan.reason = "a frame needs the dense weight";
    return plan;
  }
  const double margin = problem.weight_ready && !plan.measured ? kSurelyFaster : 1;
  plan.factored = plan.factored_seconds < margin * plan.folded_seconds;
  plan.reason = explain(plan);
  return plan;
}

}  // namespace sketchlayers
