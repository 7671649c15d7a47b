#include "ops/sk_weight.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

namespace sketchlayers {

at::Tensor sk_weight(const at::Tensor& s1, const at::Tensor& s2, const at::Tensor& u1,
                     const at::Tensor& u2, const SketchArguments& arguments) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("sketchlayers::sk_weight", "")
          .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                            const at::Tensor&, c10::string_view, int64_t, std::optional<double>,
                            const std::optional<at::Tensor>&, const std::optional<at::Tensor>&)>();
  return op.call(s1, s2, u1, u2, arguments.mixing, arguments.num_sketches, arguments.scale,
                 arguments.base, arguments.frame);
}

std::tuple<at::Tensor, at::Tensor> sk_weight_backward(const at::Tensor& grad, const at::Tensor& u1,
                                                      const at::Tensor& u2,
                                                      const SketchArguments& arguments) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("sketchlayers::sk_weight_backward", "")
          .typed<std::tuple<at::Tensor, at::Tensor>(
              const at::Tensor&, const at::Tensor&, const at::Tensor&, c10::string_view, int64_t,
              std::optional<double>, const std::optional<at::Tensor>&, int64_t)>();
  return op.call(grad, u1, u2, arguments.mixing, arguments.num_sketches, arguments.scale,
                 arguments.frame, arguments.blocks);
}

TORCH_LIBRARY_FRAGMENT(sketchlayers, m) {
  m.def(
      "sk_weight(Tensor s1, Tensor s2, Tensor u1, Tensor u2, *, str mixing='spatial',"
      " int num_sketches=1, float? scale=None, Tensor? base=None, Tensor? frame=None) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "sk_weight_backward(Tensor grad, Tensor u1, Tensor u2, *, str mixing='spatial',"
      " int num_sketches=1, float? scale=None, Tensor? frame=None, int blocks=1)"
      " -> (Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
}

}  // namespace sketchlayers
