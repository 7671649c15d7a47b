// Convolutions with channel mixing, or with one tap, in bfloat16 by a processor's own instructions.
// All features of a source pixel X are one product, and all outputs of a target pixel Y another:
//   T = X [S1 of every tap | B]
//   Z = [B's features of the source pixel of every tap | sum over the taps of S1's]
//   Y = Z [S2 of every tap | A]
// Features are rounded to bfloat16 once, in Z. The adjoint is the same with the factors exchanged.
#pragma once

#include <array>

#include "cpu/conv_geometry.h"
#include "ops/sketch.h"

namespace sketchlayers::cpu {

// The layer for dense images, whose channels lie together or apart as those of the output.
void conv_by_panels(const at::Tensor& input, const SketchTensors& tensors, const Sketch& sketch,
                    const ConvGeometry& geometry, const float* bias, const at::Tensor& output);

// The gradients that are wanted; `grad` and `input` are dense.
LayerGradients conv_by_panels_backward(const at::Tensor& grad, const at::Tensor& input,
                                       const SketchTensors& tensors, const Sketch& sketch,
                                       const ConvGeometry& geometry,
                                       const std::array<bool, 3>& wanted);

}  // namespace sketchlayers::cpu
