// The dense weight in bfloat16, and its adjoint, by a processor's own instructions: signs as
// numbers of the same type, sums in float32, rounded once.
#pragma once

#include "ops/sk_weight.h"

namespace sketchlayers::cpu {

// With spatial mixing, where a row of the weight is one of a product, and without a frame.
// Into a contiguous weight.
void weight_by_panels(const SketchTensors& tensors, const Sketch& sketch, const at::Tensor& weight);

// The gradients of S1 and S2, in their type, from that of the weight.
WeightGradients weight_by_panels_backward(const at::Tensor& grad, const at::Tensor& u1,
                                          const at::Tensor& u2, const Sketch& sketch);

}  // namespace sketchlayers::cpu
