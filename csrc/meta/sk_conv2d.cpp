#include "ops/sk_conv2d.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace sketchlayers {
namespace {

at::Tensor sk_conv2d_factored_meta(const ConvCall& call) {
  return at::empty_symint(check_call(call).output_sizes, call.input.options(),
                          common_memory_format(call.input, call.tensors.s1));
}

LayerGradients sk_conv2d_factored_backward_meta(const ConvBackwardCall& call) {
  check_call(call);
  const auto wanted = [](bool want, const at::Tensor& like) {
    return want ? at::empty_symint(like.sym_sizes(), like.options(),
                                   common_memory_format(like, like))
                : at::empty({0}, like.options());
  };
  return {wanted(call.output_mask[0], call.input), wanted(call.output_mask[1], call.tensors.s1),
          wanted(call.output_mask[2], call.tensors.s2)};
}

TORCH_LIBRARY_IMPL(sketchlayers, Meta, m) {
  m.impl("sk_conv2d_factored", TORCH_FN(ConvCall::unpacked<sk_conv2d_factored_meta>));
  m.impl("sk_conv2d_factored_backward",
         TORCH_FN(ConvBackwardCall::unpacked<sk_conv2d_factored_backward_meta>));
}

}  // namespace
}  // namespace sketchlayers
