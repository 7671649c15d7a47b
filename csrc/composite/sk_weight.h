#pragma once

#include <tuple>

#include "ops/sketch.h"

namespace sketchlayers {

// sk_weight as one differentiable composition of ATen operations, without tiles, for transforms
// that refuse C++ autograd functions (torch.func).
at::Tensor sk_weight_composition(const at::Tensor& s1, const at::Tensor& s2, const at::Tensor& u1,
                                 const at::Tensor& u2, const SketchArguments& arguments);

// sk_weight and its adjoint from ATen's batched GEMMs, tile by tile: what a device's own kernel
// falls back to for what it does not take. Arguments have been checked.
at::Tensor sk_weight_composed(const at::Tensor& s1, const at::Tensor& s2, const at::Tensor& u1,
                              const at::Tensor& u2, const SketchArguments& arguments,
                              const Sketch& sketch);
std::tuple<at::Tensor, at::Tensor> sk_weight_composed_backward(const at::Tensor& grad,
                                                               const at::Tensor& u1,
                                                               const at::Tensor& u2,
                                                               const SketchArguments& arguments,
                                                               const Sketch& sketch);

}  // namespace sketchlayers
