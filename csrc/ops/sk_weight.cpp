#include "ops/sk_weight.h"

#include <torch/library.h>

#include "ops/operator.h"

namespace sketchlayers {

at::Tensor sk_weight(const at::Tensor& s1, const at::Tensor& s2, const at::Tensor& u1,
                     const at::Tensor& u2, const SketchArguments& arguments) {
  static const auto op = find_operator<WeightCall>();
  return op.call(s1, s2, u1, u2, arguments.mixing, arguments.num_sketches, arguments.scale,
                 arguments.frame);
}

WeightGradients sk_weight_backward(const at::Tensor& grad, const at::Tensor& u1,
                                   const at::Tensor& u2, const SketchArguments& arguments) {
  static const auto op = find_operator<WeightBackwardCall>();
  return op.call(grad, u1, u2, arguments.mixing, arguments.num_sketches, arguments.scale,
                 arguments.frame, arguments.blocks);
}

Sketch check_call(const WeightCall& call) {
  return check_sketch(call.kName, call.tensors, call.arguments);
}

Sketch check_call(const WeightBackwardCall& call) {
  return check_weight_gradient(call.kName, call.grad, call.u1, call.u2, call.arguments);
}

TORCH_LIBRARY_FRAGMENT(sketchlayers, m) {
  m.def(
      "sk_weight(Tensor s1, Tensor s2, Tensor u1, Tensor u2, *, str mixing='spatial',"
      " int num_sketches=1, float? scale=None, Tensor? frame=None) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "sk_weight_backward(Tensor grad, Tensor u1, Tensor u2, *, str mixing='spatial',"
      " int num_sketches=1, float? scale=None, Tensor? frame=None, int blocks=1)"
      " -> (Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
}

}  // namespace sketchlayers
