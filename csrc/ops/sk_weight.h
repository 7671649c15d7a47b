#pragma once

#include <tuple>

#include "ops/sketch.h"

namespace sketchlayers {

// The dense weight W_hat, (d1, d2/groups, h, w) or (d1, d2).
at::Tensor sk_weight(const at::Tensor& s1, const at::Tensor& s2, const at::Tensor& u1,
                     const at::Tensor& u2, const SketchArguments& arguments);

// The adjoint of the linear part: the gradient of W_hat pulled back to (s1, s2).
std::tuple<at::Tensor, at::Tensor> sk_weight_backward(const at::Tensor& grad, const at::Tensor& u1,
                                                      const at::Tensor& u2,
                                                      const SketchArguments& arguments);

}  // namespace sketchlayers
