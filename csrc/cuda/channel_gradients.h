#pragma once

#include <utility>

#include "ops/sk_conv2d.h"

namespace sketchlayers::cuda {

// The gradients of (s1, s2) of a layer with channel mixing; undefined tensors for what is not
// wanted and where the kernels don't take the layer.
std::pair<at::Tensor, at::Tensor> try_factor_gradients(
    const at::Tensor& grad, const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
    const at::Tensor& u1, const at::Tensor& u2, bool want_s1, bool want_s2,
    const ConvArguments& conv, const Sketch& sketch);

}  // namespace sketchlayers::cuda
