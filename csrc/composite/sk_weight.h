#pragma once

#include "ops/sketch.h"

namespace sketchlayers {

// sk_weight as one differentiable composition of ATen operations, without tiles, for transforms
// that refuse C++ autograd functions (torch.func).
at::Tensor sk_weight_composition(const at::Tensor& s1, const at::Tensor& s2, const at::Tensor& u1,
                                 const at::Tensor& u2, const SketchArguments& arguments);

}  // namespace sketchlayers
