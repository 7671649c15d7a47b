// W_hat is linear in (s1, s2): its derivative is the adjoint, whose derivative is W_hat again
// (without the base).
#include "ops/sk_weight.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "autograd/saved_arguments.h"
#include "composite/sk_weight.h"
#include "ops/operands.h"

namespace sketchlayers {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

class SKWeight : public torch::autograd::Function<SKWeight> {
 public:
  static constexpr bool is_traceable = true;

  static Variable forward(AutogradContext* ctx, const Variable& s1, const Variable& s2,
                          const at::Tensor& u1, const at::Tensor& u2,
                          const SketchArguments& arguments) {
    at::AutoDispatchBelowADInplaceOrView guard;
    save_arguments(ctx, arguments);
    ctx->save_for_backward({u1, u2, arguments.frame.value_or(at::Tensor())});
    return sk_weight(s1, s2, u1, u2, arguments);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    SketchArguments arguments = saved_arguments(ctx);
    if (saved[2].defined()) arguments.frame = saved[2];
    auto [grad_s1, grad_s2] = sk_weight_backward(grads[0], saved[0], saved[1], arguments);
    return {grad_s1, grad_s2, Variable(), Variable(), Variable()};
  }
};

class SKWeightBackward : public torch::autograd::Function<SKWeightBackward> {
 public:
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Variable& grad, const at::Tensor& u1,
                               const at::Tensor& u2, const SketchArguments& arguments) {
    at::AutoDispatchBelowADInplaceOrView guard;
    save_arguments(ctx, arguments);
    ctx->save_for_backward({u1, u2, arguments.frame.value_or(at::Tensor())});
    auto [grad_s1, grad_s2] = sk_weight_backward(grad, u1, u2, arguments);
    return {grad_s1, grad_s2};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    SketchArguments arguments = saved_arguments(ctx);
    if (saved[2].defined()) arguments.frame = saved[2];
    return {sk_weight(grads[0], grads[1], saved[0], saved[1], arguments), Variable(), Variable(),
            Variable()};
  }
};

at::Tensor sk_weight_autograd(const at::Tensor& s1, const at::Tensor& s2, const at::Tensor& u1,
                              const at::Tensor& u2, c10::string_view mixing, int64_t num_sketches,
                              std::optional<double> scale, const std::optional<at::Tensor>& base,
                              const std::optional<at::Tensor>& frame) {
  SketchArguments arguments{std::string(mixing), num_sketches, scale, base, frame};
  if (under_transform({s1, s2})) return sk_weight_composition(s1, s2, u1, u2, arguments);
  if (records({s1, s2})) {
    arguments.blocks = check_sketch("sk_weight", s1, s2, u1, u2, arguments).blocks;
    return SKWeight::apply(s1, s2, u1, u2, arguments);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return sk_weight(s1, s2, u1, u2, arguments);
}

std::tuple<at::Tensor, at::Tensor> sk_weight_backward_autograd(
    const at::Tensor& grad, const at::Tensor& u1, const at::Tensor& u2, c10::string_view mixing,
    int64_t num_sketches, std::optional<double> scale, const std::optional<at::Tensor>& frame,
    int64_t blocks) {
  const SketchArguments arguments{std::string(mixing), num_sketches, scale,
                                  std::nullopt,        frame,        blocks};
  if (records({grad})) {
    const auto grads = SKWeightBackward::apply(grad, u1, u2, arguments);
    return {grads[0], grads[1]};
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return sk_weight_backward(grad, u1, u2, arguments);
}

TORCH_LIBRARY_IMPL(sketchlayers, Autograd, m) {
  m.impl("sk_weight", TORCH_FN(sk_weight_autograd));
  m.impl("sk_weight_backward", TORCH_FN(sk_weight_backward_autograd));
}

}  // namespace
}  // namespace sketchlayers
