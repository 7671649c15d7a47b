// Which path computes a convolution that is a chain of factors: one pass over tiles of pixels, or
// PyTorch's convolutions one after the other. Plain C++.
#pragma once

#include <optional>
#include <string>

#include "plan/cost_model.h"

namespace sketchlayers {

struct ChainProblem {
  Processor processor;
  Precision precision;
  bool training;       // whether gradients will be recorded
  bool channels_last;  // how the images lie in memory
  bool factors;        // whether there are 1x1 ones
  bool depthwise;      // the core
  double core;         // its entries
  // Of the whole chain, and of one image of the output; not known where a size is symbolic.
  std::optional<double> multiply_adds;
  std::optional<double> pixels;
};

struct ChainPlan {
  bool fused;
  const char* reason;
};

ChainPlan plan_chain(const ChainProblem& problem);

}  // namespace sketchlayers
