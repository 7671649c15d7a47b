#include "ops/sk_linear.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace sketchlayers {
namespace {

at::Tensor sk_linear_factored_meta(const LinearCall& call) {
  const Sketch sketch = check_call(call);
  auto sizes = call.input.sym_sizes().vec();
  sizes.back() = sketch.out_channels;
  return at::empty_symint(sizes, call.input.options());
}

LayerGradients sk_linear_factored_backward_meta(const LinearBackwardCall& call) {
  check_call(call);
  const auto wanted = [](bool want, const at::Tensor& like) {
    return want ? at::empty_symint(like.sym_sizes(), like.options())
                : at::empty({0}, like.options());
  };
  return {wanted(call.output_mask[0], call.input), wanted(call.output_mask[1], call.tensors.s1),
          wanted(call.output_mask[2], call.tensors.s2)};
}

TORCH_LIBRARY_IMPL(sketchlayers, Meta, m) {
  m.impl("sk_linear_factored", TORCH_FN(LinearCall::unpacked<sk_linear_factored_meta>));
  m.impl("sk_linear_factored_backward",
         TORCH_FN(LinearBackwardCall::unpacked<sk_linear_factored_backward_meta>));
}

}  // namespace
}  // namespace sketchlayers
