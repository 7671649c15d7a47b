#include "ops/sk_linear.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "autograd/bilinear.h"

namespace sketchlayers {
namespace {

struct Linear {
  SketchArguments arguments;

  void save(torch::autograd::AutogradContext* ctx) const { save_arguments(ctx, arguments); }
  static Linear load(torch::autograd::AutogradContext* ctx) { return {saved_arguments(ctx)}; }

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
  m.impl("sk_linear_factored", TORCH_FN(LinearCall::unpacked<sk_linear_factored_autograd>));
  m.impl("sk_linear_factored_backward",
         TORCH_FN(LinearBackwardCall::unpacked<sk_linear_factored_backward_autograd>));
}

}  // namespace
}  // namespace sketchlayers
