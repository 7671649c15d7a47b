// The factored fully connected layer in bfloat16 by a processor's own instructions: every product
// by panels, signs as numbers of the same type. Features are rounded to it between the products.
#pragma once

#include <array>

#include "ops/sk_linear.h"

namespace sketchlayers::cpu {

// y = W_hat x + bias for rows x, which are contiguous.
void linear_by_panels(const at::Tensor& x, const SketchTensors& tensors, const Sketch& sketch,
                      const float* bias, const at::Tensor& y);

// The gradients that are wanted, for the gradient dy of rows.
LayerGradients linear_by_panels_backward(const at::Tensor& dy, const at::Tensor& x,
                                         const SketchTensors& tensors, const Sketch& sketch,
                                         const std::array<bool, 3>& wanted);

}  // namespace sketchlayers::cpu
