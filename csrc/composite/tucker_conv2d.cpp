// tucker_conv2d_fused where there is no kernel of our own: ATen's convolutions.
#include "ops/tucker_conv2d.h"

#include <torch/library.h>

#include "ops/sketch.h"

namespace sketchlayers {
namespace {

at::Tensor tucker_conv2d_fused_composed(const TuckerCall& call) {
  check_call(call);
  return in_format(tucker_conv2d_plain(call), common_memory_format(call.input, call.factors.core));
}

TORCH_LIBRARY_IMPL(sketchlayers, CompositeExplicitAutograd, m) {
  m.impl("tucker_conv2d_fused", TORCH_FN(TuckerCall::unpacked<tucker_conv2d_fused_composed>));
}

}  // namespace
}  // namespace sketchlayers
