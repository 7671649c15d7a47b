// W_hat is linear in (s1, s2): its derivative is the adjoint, whose derivative is W_hat again.
#include "ops/sk_weight.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "autograd/saved_arguments.h"
#include "composite/composed.h"
#include "ops/operands.h"

namespace sketchlayers {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

void save(AutogradContext* ctx, const at::Tensor& u1, const at::Tensor& u2,
          const SketchArguments& arguments) {
  save_arguments(ctx, arguments);
  ctx->save_for_backward({u1, u2, arguments.frame.value_or(at::Tensor())});
}

struct Saved {
  at::Tensor u1, u2;
  SketchArguments arguments;
};

Saved saved(AutogradContext* ctx) {
  const auto tensors = ctx->get_saved_variables();
  Saved result{tensors[0], tensors[1], saved_arguments(ctx)};
  if (tensors[2].defined()) result.arguments.frame = tensors[2];
  return result;
}

class SKWeight : public torch::autograd::Function<SKWeight> {
 public:
  static constexpr bool is_traceable = true;

  static Variable forward(AutogradContext* ctx, const Variable& s1, const Variable& s2,
                          const at::Tensor& u1, const at::Tensor& u2,
                          const SketchArguments& arguments) {
    at::AutoDispatchBelowADInplaceOrView guard;
    save(ctx, u1, u2, arguments);
    return sk_weight(s1, s2, u1, u2, arguments);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto [u1, u2, arguments] = saved(ctx);
    auto [grad_s1, grad_s2] = sk_weight_backward(grads[0], u1, u2, arguments);
    return {grad_s1, grad_s2, Variable(), Variable(), Variable()};
  }
};

class SKWeightBackward : public torch::autograd::Function<SKWeightBackward> {
 public:
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Variable& grad, const at::Tensor& u1,
                               const at::Tensor& u2, const SketchArguments& arguments) {
    at::AutoDispatchBelowADInplaceOrView guard;
    save(ctx, u1, u2, arguments);
    auto [grad_s1, grad_s2] = sk_weight_backward(grad, u1, u2, arguments);
    return {grad_s1, grad_s2};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto [u1, u2, arguments] = saved(ctx);
    return {sk_weight(grads[0], grads[1], u1, u2, arguments), Variable(), Variable(), Variable()};
  }
};

at::Tensor sk_weight_autograd(const WeightCall& call) {
  const auto& [s1, s2, u1, u2] = call.tensors;
  if (under_transform({s1, s2})) return sk_weight_composition(call);
  if (records({s1, s2})) {
    SketchArguments arguments = call.arguments;
    arguments.blocks = check_call(call).blocks;
    return SKWeight::apply(s1, s2, u1, u2, arguments);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return sk_weight(s1, s2, u1, u2, call.arguments);
}

WeightGradients sk_weight_backward_autograd(const WeightBackwardCall& call) {
  if (records({call.grad})) {
    const auto grads = SKWeightBackward::apply(call.grad, call.u1, call.u2, call.arguments);
    return {grads[0], grads[1]};
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return sk_weight_backward(call.grad, call.u1, call.u2, call.arguments);
}

TORCH_LIBRARY_IMPL(sketchlayers, Autograd, m) {
  m.impl("sk_weight", TORCH_FN(WeightCall::unpacked<sk_weight_autograd>));
  m.impl("sk_weight_backward", TORCH_FN(WeightBackwardCall::unpacked<sk_weight_backward_autograd>));
}

}  // namespace
}  // namespace sketchlayers
