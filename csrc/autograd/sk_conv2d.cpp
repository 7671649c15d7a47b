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

  at::Tensor forward(const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
                     const at::Tensor& u1, const at::Tensor& u2,
                     const std::optional<at::Tensor>& bias) const {
    return sk_conv2d_factored(input, s1, s2, u1, u2, bias, conv, arguments);
  }

  Gradients backward(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& s1,
                     const at::Tensor& s2, const at::Tensor& u1, const at::Tensor& u2,
                     std::array<bool, 3> output_mask) const {
    return sk_conv2d_factored_backward(grad, input, s1, s2, u1, u2, output_mask, conv, arguments);
  }

  static at::Tensor bias_gradient(const at::Tensor& grad) { return grad.sum({0, 2, 3}); }
};

at::Tensor sk_conv2d_factored_autograd(const at::Tensor& input, const at::Tensor& s1,
                                       const at::Tensor& s2, const at::Tensor& u1,
                                       const at::Tensor& u2, const std::optional<at::Tensor>& bias,
                                       at::IntArrayRef stride, at::IntArrayRef padding,
                                       at::IntArrayRef dilation, int64_t groups,
                                       c10::string_view mixing, int64_t num_sketches,
                                       std::optional<double> scale) {
  return Bilinear<Conv>::run(input, s1, s2, bias, u1, u2,
                             Conv{{stride.vec(), padding.vec(), dilation.vec(), groups},
                                  SketchArguments{std::string(mixing), num_sketches, scale}});
}

Gradients sk_conv2d_factored_backward_autograd(
    const at::Tensor& grad, const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
    const at::Tensor& u1, const at::Tensor& u2, std::array<bool, 3> output_mask,
    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
    c10::string_view mixing, int64_t num_sketches, std::optional<double> scale) {
  return BilinearBackward<Conv>::run(
      grad, input, s1, s2, u1, u2, output_mask,
      Conv{{stride.vec(), padding.vec(), dilation.vec(), groups},
           SketchArguments{std::string(mixing), num_sketches, scale}});
}

TORCH_LIBRARY_IMPL(sketchlayers, Autograd, m) {
  m.impl("sk_conv2d_factored", TORCH_FN(sk_conv2d_factored_autograd));
  m.impl("sk_conv2d_factored_backward", TORCH_FN(sk_conv2d_factored_backward_autograd));
}

}  // namespace
}  // namespace sketchlayers
