// Which path computes a sketched layer of this shape: plain C++, shapes in, a plan out.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "ops/mixing.h"

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
  Mixing mixing = Mixing::kSpatial;
  bool training = false;
  bool needs_folded = false;  // a base or a frame
};

// Multiply-adds of one whole forward call.
struct Plan {
  bool factored = false;
  std::string reason;
  double factored_multiply_adds = 0;
  double folded_multiply_adds = 0;
  double dense_multiply_adds = 0;
};

Plan plan(const PlanProblem& problem);

}  // namespace sketchlayers
