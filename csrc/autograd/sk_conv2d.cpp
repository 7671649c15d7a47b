#include "ops/sk_conv2d.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "autograd/bilinear.h"

namespace sketchlayers {
namespace {

struct Conv {
  ConvArguments conv;
  SketchArguments arguments;

  void save(torch::autograd::AutogradContext* ctx) const {
    save_arguments(ctx, arguments);
    ctx->saved_data["stride"] = conv.stride;
    ctx->saved_data["padding"] = conv.padding;
    ctx->saved_data["dilation"] = conv.dilation;
    ctx->saved_data["groups"] = conv.groups;
  }

  static Conv load(torch::autograd::AutogradContext* ctx) {
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

TORCH_LIBRARY_IMPL(sketchlayers, Autograd, m) {
  m.impl("sk_conv2d_factored", TORCH_FN(ConvCall::unpacked<sk_conv2d_factored_autograd>));
  m.impl("sk_conv2d_factored_backward",
         TORCH_FN(ConvBackwardCall::unpacked<sk_conv2d_factored_backward_autograd>));
}

}  // namespace
}  // namespace sketchlayers
