#pragma once

#include "ops/sk_weight.h"

namespace sketchlayers {

// sk_weight as one differentiable composition of ATen operations, without tiles, for transforms
// that refuse C++ autograd functions (torch.func).
at::Tensor sk_weight_composition(const WeightCall& call);

// sk_weight and its adjoint from ATen's batched GEMMs, tile by tile: what a device's own kernel
// falls back to for what it does not take. Arguments have been checked.
at::Tensor sk_weight_composed(const WeightCall& call, const Sketch& sketch);
WeightGradients sk_weight_composed_backward(const WeightBackwardCall& call, const Sketch& sketch);

}  // namespace sketchlayers
