// The factored fully connected layer from ATen's GEMMs: what a device's own kernel falls back to
// for what it does not take. Arguments have been checked.
#pragma once

#include "ops/sk_linear.h"

namespace sketchlayers {

at::Tensor sk_linear_composed(const LinearCall& call, const Sketch& sketch);
LayerGradients sk_linear_composed_backward(const LinearBackwardCall& call, const Sketch& sketch);

}  // namespace sketchlayers
