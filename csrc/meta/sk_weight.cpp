#include "ops/sk_weight.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace sketchlayers {
namespace {

at::Tensor sk_weight_meta(const WeightCall& call) {
  const at::Tensor& s1 = call.tensors.s1;
  return at::empty(check_call(call).weight_sizes(), s1.options(), common_memory_format(s1, s1));
}

WeightGradients sk_weight_backward_meta(const WeightBackwardCall& call) {
  const Sketch sketch = check_call(call);
  return {at::empty(sketch.s1_sizes(), call.grad.options()),
          at::empty(sketch.s2_sizes(), call.grad.options())};
}

TORCH_LIBRARY_IMPL(sketchlayers, Meta, m) {
  m.impl("sk_weight", TORCH_FN(WeightCall::unpacked<sk_weight_meta>));
  m.impl("sk_weight_backward", TORCH_FN(WeightBackwardCall::unpacked<sk_weight_backward_meta>));
}

}  // namespace
}  // namespace sketchlayers
