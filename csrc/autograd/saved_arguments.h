// Keeps the plain arguments of a sketched weight for the backward pass (tensors go through
// save_for_backward).
#pragma once

#include <torch/csrc/autograd/custom_function.h>

#include "ops/sketch.h"

namespace sketchlayers {

inline void save_arguments(torch::autograd::AutogradContext* ctx,
                           const SketchArguments& arguments) {
  ctx->saved_data["mixing"] = arguments.mixing;
  ctx->saved_data["num_sketches"] = arguments.num_sketches;
  ctx->saved_data["scale"] = arguments.scale;
  ctx->saved_data["blocks"] = arguments.blocks;
}

inline SketchArguments saved_arguments(torch::autograd::AutogradContext* ctx) {
  SketchArguments arguments;
  arguments.mixing = ctx->saved_data["mixing"].toStringRef();
  arguments.num_sketches = ctx->saved_data["num_sketches"].toInt();
  arguments.scale = ctx->saved_data["scale"].toOptional<double>();
  arguments.blocks = ctx->saved_data["blocks"].toInt();
  return arguments;
}

}  // namespace sketchlayers
