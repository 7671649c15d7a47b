// Which path computes a sketched layer of this shape: plain C++, shapes in, a plan out.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "ops/mixing.h"
#include "plan/cost_model.h"

namespace sketchlayers {

// One call of a layer. A fully connected layer is a 1x1 convolution on one pixel. Sizes that are
// unknown while a graph is traced are absent.
struct PlanProblem {
  std::optional<int64_t> batch;
  int64_t in_channels = 1;
  int64_t out_channels = 1;
  int64_t groups = 1;
  int64_t kernel_h = 1;
  int64_t kernel_w = 1;
  std::optional<int64_t> input_pixels = 1;   // height * width
  std::optional<int64_t> output_pixels = 1;  // height * width
  int64_t sketch_rank = 1;                   // l * k
  int64_t blocks = 1;                        // with signs of their own
  Mixing mixing = Mixing::kSpatial;
  bool is_linear = false;
  Processor processor = Processor::kCpu;
  Precision precision = Precision::kFloat32;
  bool training = false;
  bool channels_last = false;  // the images' memory format
  bool weight_ready = false;   // an earlier call has left the dense weight
  bool needs_folded = false;   // by a frame
  int64_t threads = 1;
  double dense_slowdown = 1;  // of PyTorch's layers, beside what the package's constants have
};

// Multiply-adds of one whole forward call, and estimated seconds of it (with its backward in
// training).
struct Plan {
  bool factored = false;
  bool panels = false;  // whether the factored path is that of cpu/panels.h
  std::string reason;
  double factored_multiply_adds = 0;
  double folded_multiply_adds = 0;
  double dense_multiply_adds = 0;
  // Of the factored path, with the lanes that go to waste, as the estimate has them.
  double computed_multiply_adds = 0;
  double computed_elements = 0;
  double factored_seconds = 0;
  double folded_seconds = 0;
  bool measured = false;  // not estimated
};

Plan plan(const PlanProblem& problem);

}  // namespace sketchlayers
