// The planner: counts of multiply-adds that can be checked by hand, and the choices they lead to.
#include "plan/plan.h"

#include <gtest/gtest.h>

#include "plan/measured_times.h"

namespace sketchlayers {
namespace {

PlanProblem fully_connected(int64_t batch) {
  PlanProblem problem;
  problem.batch = batch;
  problem.in_channels = 1024;
  problem.out_channels = 512;
  problem.sketch_rank = 16;
  return problem;
}

PlanProblem convolution(int64_t batch, Mixing mixing) {
  PlanProblem problem;
  problem.batch = batch;
  problem.in_channels = 192;
  problem.out_channels = 128;
  problem.kernel_h = problem.kernel_w = 5;
  problem.input_pixels = problem.output_pixels = 16 * 16;
  problem.sketch_rank = 10;
  problem.mixing = mixing;
  return problem;
}

TEST(Plan, CountsOfAFullyConnectedLayer) {
  const Plan plan = sketchlayers::plan(fully_connected(3));
  EXPECT_EQ(plan.dense_multiply_adds, 3.0 * 1024 * 512);
  // A (S1 x) and S2 (B x), each through 16 features.
  EXPECT_EQ(plan.factored_multiply_adds, 3.0 * 2 * 16 * (1024 + 512));
  // A S1 and S2 B, then the dense layer.
  EXPECT_EQ(plan.folded_multiply_adds, plan.dense_multiply_adds + 2.0 * 16 * 1024 * 512);
}

TEST(Plan, CountsOfAConvolution) {
  const double n = 192 * 25, pixels = 7.0 * 256;
  const Plan spatial = sketchlayers::plan(convolution(7, Mixing::kSpatial));
  EXPECT_EQ(spatial.dense_multiply_adds, pixels * n * 128);
  EXPECT_EQ(spatial.factored_multiply_adds, pixels * 10 * (n + 128) * (1 + 25));
  EXPECT_EQ(spatial.folded_multiply_adds, spatial.dense_multiply_adds + 10 * n * 128 * (1 + 25));

  const Plan channel = sketchlayers::plan(convolution(7, Mixing::kChannel));
  // The channel sketch is a 1x1 convolution before the 5x5 one.
  EXPECT_EQ(channel.factored_multiply_adds, pixels * 10 * (n + 128 + 192 + 25 * 128));
}

TEST(Plan, FoldingDoesNotPayForOneRow) { EXPECT_TRUE(plan(fully_connected(1)).factored); }

TEST(Plan, SpatialMixingOfNearlyFullRankFolds) {
  PlanProblem problem = convolution(64, Mixing::kSpatial);
  problem.sketch_rank = 100;
  EXPECT_FALSE(plan(problem).factored);
}

TEST(Plan, TheWeightIsFormedWhenItIsNeeded) {
  PlanProblem problem = fully_connected(1);
  problem.needs_folded = true;
  const Plan plan = sketchlayers::plan(problem);
  EXPECT_FALSE(plan.factored);
  EXPECT_FALSE(plan.reason.empty());
}

TEST(Plan, GoesByMeasuredTimes) {
  PlanProblem problem = convolution(64, Mixing::kChannel);
  const bool estimated = plan(problem).factored;
  record_times(problem, estimated ? PathTimes{3, 1, 1} : PathTimes{1, 1, 1});
  record_times(problem, {0, 0, 0});  // the first ones stay
  const Plan measured = plan(problem);
  EXPECT_TRUE(measured.measured);
  EXPECT_NE(measured.factored, estimated);
  EXPECT_EQ(measured.folded_seconds, 2);  // with the forming of the weight
  problem.weight_ready = true;
  EXPECT_EQ(plan(problem).folded_seconds, 1);
  problem.threads = 7;
  EXPECT_FALSE(plan(problem).measured);
  forget_times();
  problem.threads = 1;
  EXPECT_FALSE(plan(problem).measured);
}

TEST(Plan, SlowDenseLayersOfATypeAreFoldedLess) {
  PlanProblem problem = convolution(64, Mixing::kChannel);
  problem.processor = Processor::kOneDnn;
  problem.precision = Precision::kBFloat16;
  problem.weight_ready = true;
  const Plan before = plan(problem);
  problem.dense_slowdown = 4;
  EXPECT_DOUBLE_EQ(plan(problem).folded_seconds, 4 * before.folded_seconds);
  EXPECT_EQ(plan(problem).factored_seconds, before.factored_seconds);
}

TEST(Plan, UnknownSizesArePlannedForAsMany) {
  PlanProblem problem = convolution(64, Mixing::kSpatial);
  problem.sketch_rank = 100;
  problem.batch = problem.input_pixels = problem.output_pixels = std::nullopt;
  const Plan plan = sketchlayers::plan(problem);
  EXPECT_FALSE(plan.factored);
  EXPECT_GT(plan.dense_multiply_adds, 0);
}

}  // namespace
}  // namespace sketchlayers
