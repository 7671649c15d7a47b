// Derivatives of the factored layers. f(x, theta) with theta = (s1, s2) is linear in x and linear
// in theta, so with
//   B(g, x, theta) = (dx, dtheta)   (the backward operator; dx depends on g and theta, dtheta on g
//   and x)
// the derivative of B along (ggx, ggtheta) needs no new kernels, and derivatives of every order
// exist:
//   for g:      f(ggx, theta) + f(x, ggtheta)
//   for x:      dx of B(g, ., ggtheta)
//   for theta:  dtheta of B(g, ggx, .)
#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <numeric>
#include <optional>
#include <tuple>

#include "autograd/saved_arguments.h"
#include "ops/operands.h"
#include "ops/sk_conv2d.h"
#include "ops/sk_linear.h"

namespace sketchlayers {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// `Layer` knows its plain arguments: save, load, forward, backward and bias_gradient.
template <typename Layer>
class Bilinear : public torch::autograd::Function<Bilinear<Layer>> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor run(const at::Tensor& input, const SketchTensors& tensors,
                        const std::optional<at::Tensor>& bias, const Layer& layer) {
    const auto& [s1, s2, u1, u2] = tensors;
    if (records({input, s1, s2, bias.value_or(at::Tensor())})) {
      return Bilinear::apply(input, s1, s2, bias, u1, u2, layer);
    }
    at::AutoDispatchBelowADInplaceOrView guard;
    return layer.forward(input, tensors, bias);
  }

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, const at::Tensor& s1,
                            const at::Tensor& s2, const std::optional<at::Tensor>& bias,
                            const at::Tensor& u1, const at::Tensor& u2, const Layer& layer) {
    at::AutoDispatchBelowADInplaceOrView guard;
    layer.save(ctx);
    ctx->save_for_backward({input, s1, s2, u1, u2});
    return layer.forward(input, {s1, s2, u1, u2}, bias);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Layer layer = Layer::load(ctx);
    const std::array<bool, 3> mask{ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                                   ctx->needs_input_grad(2)};
    at::Tensor grad_input, grad_s1, grad_s2, grad_bias;
    if (mask[0] || mask[1] || mask[2]) {
      std::tie(grad_input, grad_s1, grad_s2) =
          layer.backward(grads[0], saved[0], {saved[1], saved[2], saved[3], saved[4]}, mask);
    }
    if (ctx->needs_input_grad(3)) grad_bias = Layer::bias_gradient(grads[0]);
    const at::Tensor none;
    return {mask[0] ? grad_input : none,
            mask[1] ? grad_s1 : none,
            mask[2] ? grad_s2 : none,
            grad_bias,
            none,
            none,
            none};
  }
};

template <typename Layer>
class BilinearBackward : public torch::autograd::Function<BilinearBackward<Layer>> {
 public:
  static constexpr bool is_traceable = true;

  static LayerGradients run(const at::Tensor& grad, const at::Tensor& input,
                            const SketchTensors& tensors, std::array<bool, 3> output_mask,
                            const Layer& layer) {
    const auto& [s1, s2, u1, u2] = tensors;
    if (records({grad, input, s1, s2})) {
      const auto grads = BilinearBackward::apply(grad, input, s1, s2, u1, u2, output_mask, layer);
      return {grads[0], grads[1], grads[2]};
    }
    at::AutoDispatchBelowADInplaceOrView guard;
    return layer.backward(grad, input, tensors, output_mask);
  }

  static variable_list forward(AutogradContext* ctx, const at::Tensor& grad,
                               const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
                               const at::Tensor& u1, const at::Tensor& u2,
                               std::array<bool, 3> output_mask, const Layer& layer) {
    at::AutoDispatchBelowADInplaceOrView guard;
    layer.save(ctx);
    ctx->save_for_backward({grad, input, s1, s2, u1, u2});
    ctx->saved_data["output_mask"] =
        c10::List<bool>({output_mask[0], output_mask[1], output_mask[2]});
    auto [grad_input, grad_s1, grad_s2] =
        layer.backward(grad, input, {s1, s2, u1, u2}, output_mask);
    return {grad_input, grad_s1, grad_s2};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &grad = saved[0], &input = saved[1], &s1 = saved[2], &s2 = saved[3];
    const at::Tensor &u1 = saved[4], &u2 = saved[5];
    const Layer layer = Layer::load(ctx);
    // A gradient that was left out is an empty tensor: nothing flows back through it.
    const auto produced = ctx->saved_data["output_mask"].toBoolList();
    const bool has_input = produced[0];
    const bool has_theta = produced[1] || produced[2];
    const at::Tensor grad_s1 = produced[1] ? grads[1] : at::zeros_like(s1);
    const at::Tensor grad_s2 = produced[2] ? grads[2] : at::zeros_like(s2);
    const SketchTensors tensors{s1, s2, u1, u2};
    const SketchTensors directions{grad_s1, grad_s2, u1, u2};

    at::Tensor for_grad, for_input, for_s1, for_s2;
    if (ctx->needs_input_grad(0)) {
      if (has_input) for_grad = layer.forward(grads[0], tensors, std::nullopt);
      if (has_theta) {
        const at::Tensor second = layer.forward(input, directions, std::nullopt);
        for_grad = for_grad.defined() ? for_grad + second : second;
      }
    }
    if (has_theta && ctx->needs_input_grad(1)) {
      for_input = std::get<0>(layer.backward(grad, input, directions, {true, false, false}));
    }
    if (has_input && (ctx->needs_input_grad(2) || ctx->needs_input_grad(3))) {
      const std::array<bool, 3> mask{false, ctx->needs_input_grad(2), ctx->needs_input_grad(3)};
      auto [none, theta1, theta2] = layer.backward(grad, grads[0], tensors, mask);
      if (mask[1]) for_s1 = theta1;
      if (mask[2]) for_s2 = theta2;
    }
    const at::Tensor none;
    return {for_grad, for_input, for_s1, for_s2, none, none, none, none};
  }
};

struct Conv {
  ConvArguments conv;
  SketchArguments arguments;

  void save(AutogradContext* ctx) const {
    save_arguments(ctx, arguments);
    ctx->saved_data["stride"] = conv.stride;
    ctx->saved_data["padding"] = conv.padding;
    ctx->saved_data["dilation"] = conv.dilation;
    ctx->saved_data["groups"] = conv.groups;
  }

  static Conv load(AutogradContext* ctx) {
    auto& data = ctx->saved_data;
    return {{data["stride"].toIntVector(), data["padding"].toIntVector(),
             data["dilation"].toIntVector(), data["groups"].toInt()},
            saved_arguments(ctx)};
  }

  at::Tensor forward(const at::Tensor& input, const SketchTensors& tensors,
                     const std::optional<at::Tensor>& bias) const {
    return sk_conv2d_factored({input, tensors, bias, conv, arguments});
  }

  LayerGradients backward(const at::Tensor& grad, const at::Tensor& input,
                          const SketchTensors& tensors, std::array<bool, 3> output_mask) const {
    return sk_conv2d_factored_backward({grad, input, tensors, output_mask, conv, arguments});
  }

  static at::Tensor bias_gradient(const at::Tensor& grad) { return grad.sum({0, 2, 3}); }
};

at::Tensor sk_conv2d_factored_autograd(const ConvCall& call) {
  return Bilinear<Conv>::run(call.input, call.tensors, call.bias, Conv{call.conv, call.arguments});
}

LayerGradients sk_conv2d_factored_backward_autograd(const ConvBackwardCall& call) {
  return BilinearBackward<Conv>::run(call.grad, call.input, call.tensors, call.output_mask,
                                     Conv{call.conv, call.arguments});
}

struct Linear {
  SketchArguments arguments;

  void save(AutogradContext* ctx) const { save_arguments(ctx, arguments); }
  static Linear load(AutogradContext* ctx) { return {saved_arguments(ctx)}; }

  at::Tensor forward(const at::Tensor& input, const SketchTensors& tensors,
                     const std::optional<at::Tensor>& bias) const {
    return sk_linear_factored({input, tensors, bias, arguments});
  }

  LayerGradients backward(const at::Tensor& grad, const at::Tensor& input,
                          const SketchTensors& tensors, std::array<bool, 3> output_mask) const {
    return sk_linear_factored_backward({grad, input, tensors, output_mask, arguments});
  }

  static at::Tensor bias_gradient(const at::Tensor& grad) {
    std::vector<int64_t> leading(grad.dim() - 1);
    std::iota(leading.begin(), leading.end(), 0);
    return leading.empty() ? grad : grad.sum(leading);
  }
};

at::Tensor sk_linear_factored_autograd(const LinearCall& call) {
  return Bilinear<Linear>::run(call.input, call.tensors, call.bias, Linear{call.arguments});
}

LayerGradients sk_linear_factored_backward_autograd(const LinearBackwardCall& call) {
  return BilinearBackward<Linear>::run(call.grad, call.input, call.tensors, call.output_mask,
                                       Linear{call.arguments});
}

TORCH_LIBRARY_IMPL(sketchlayers, Autograd, m) {
  m.impl("sk_conv2d_factored", TORCH_FN(ConvCall::unpacked<sk_conv2d_factored_autograd>));
  m.impl("sk_conv2d_factored_backward",
         TORCH_FN(ConvBackwardCall::unpacked<sk_conv2d_factored_backward_autograd>));
  m.impl("sk_linear_factored", TORCH_FN(LinearCall::unpacked<sk_linear_factored_autograd>));
  m.impl("sk_linear_factored_backward",
         TORCH_FN(LinearBackwardCall::unpacked<sk_linear_factored_backward_autograd>));
}

}  // namespace
}  // namespace sketchlayers
