// The factored convolution from ATen's convolutions and GEMMs: what a device's own kernel falls
// back to for what it does not take. Arguments have been checked.
#pragma once

#include "ops/sk_conv2d.h"

namespace sketchlayers {

at::Tensor sk_conv2d_composed(const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
                              const at::Tensor& u1, const at::Tensor& u2,
                              const std::optional<at::Tensor>& bias, const ConvArguments& arguments,
                              const Sketch& sketch);

std::tuple<at::Tensor, at::Tensor, at::Tensor> sk_conv2d_composed_backward(
    const at::Tensor& grad, const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
    const at::Tensor& u1, const at::Tensor& u2, std::array<bool, 3> output_mask,
    const ConvArguments& arguments, const Sketch& sketch);

}  // namespace sketchlayers
