// The factored convolution from ATen's convolutions and GEMMs: what a device's own kernel falls
// back to for what it does not take. Arguments have been checked.
#pragma once

#include "ops/sk_conv2d.h"

namespace sketchlayers {

at::Tensor sk_conv2d_composed(const ConvCall& call, const Sketch& sketch);
LayerGradients sk_conv2d_composed_backward(const ConvBackwardCall& call, const Sketch& sketch);

}  // namespace sketchlayers
