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

  at::Tensor forward(const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
                     const at::Tensor& u1, const at::Tensor& u2,
                     const std::optional<at::Tensor>& bias) const {
    return sk_linear_factored(input, s1, s2, u1, u2, bias, arguments);
  }

  Gradients backward(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& s1,
                     const at::Tensor& s2, const at::Tensor& u1, const at::Tensor& u2,
                     std::array<bool, 3> output_mask) const {
    return sk_linear_factored_backward(grad, input, s1, s2, u1, u2, output_mask, arguments);
  }

  static at::Tensor bias_gradient(const at::Tensor& grad) {
    std::vector<int64_t> leading(grad.dim() - 1);
    std::iota(leading.begin(), leading.end(), 0);
    return leading.empty() ? grad : grad.sum(leading);
  }
};

at::Tensor sk_linear_factored_autograd(const at::Tensor& input, const at::Tensor& s1,
                                       const at::Tensor& s2, const at::Tensor& u1,
                                       const at::Tensor& u2, const std::optional<at::Tensor>& bias,
                                       int64_t num_sketches, std::optional<double> scale) {
  return Bilinear<Linear>::run(input, s1, s2, bias, u1, u2,
                               Linear{SketchArguments{"spatial", num_sketches, scale}});
}

Gradients sk_linear_factored_backward_autograd(const at::Tensor& grad, const at::Tensor& input,
                                               const at::Tensor& s1, const at::Tensor& s2,
                                               const at::Tensor& u1, const at::Tensor& u2,
                                               std::array<bool, 3> output_mask,
                                               int64_t num_sketches, std::optional<double> scale) {
  return BilinearBackward<Linear>::run(grad, input, s1, s2, u1, u2, output_mask,
                                       Linear{SketchArguments{"spatial", num_sketches, scale}});
}

TORCH_LIBRARY_IMPL(sketchlayers, Autograd, m) {
  m.impl("sk_linear_factored", TORCH_FN(sk_linear_factored_autograd));
  m.impl("sk_linear_factored_backward", TORCH_FN(sk_linear_factored_backward_autograd));
}

}  // namespace
}  // namespace sketchlayers
