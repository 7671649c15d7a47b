#pragma once

#include <utility>

#include "ops/sk_conv2d.h"

namespace sketchlayers::cuda {

// The gradients of (s1, s2) of a layer with channel mixing; undefined tensors for what is not
// wanted and where the kernels don't take the layer.
std::pair<at::Tensor, at::Tensor> try_factor_gradients(const ConvBackwardCall& call,
                                                       const Sketch& sketch);

}  // namespace sketchlayers::cuda
