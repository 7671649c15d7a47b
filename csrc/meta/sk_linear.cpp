#include "ops/sk_linear.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace sketchlayers {
namespace {

at::Tensor sk_linear_factored_meta(const at::Tensor& input, const at::Tensor& s1,
                                   const at::Tensor& s2, const at::Tensor& u1, const at::Tensor& u2,
                                   const std::optional<at::Tensor>& bias, int64_t num_sketches,
                                   std::optional<double> scale) {
  constexpr const char* kName = "sk_linear_factored";
  const Sketch sketch =
      check_sketch(kName, s1, s2, u1, u2, SketchArguments{"spatial", num_sketches, scale});
  check_linear_input(kName, input, bias, s1, sketch);
  auto sizes = input.sym_sizes().vec();
  sizes.back() = sketch.out_channels;
  return at::empty_symint(sizes, input.options());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> sk_linear_factored_backward_meta(
    const at::Tensor& grad, const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
    const at::Tensor& u1, const at::Tensor& u2, std::array<bool, 3> output_mask,
    int64_t num_sketches, std::optional<double> scale) {
  constexpr const char* kName = "sk_linear_factored_backward";
  const Sketch sketch =
      check_sketch(kName, s1, s2, u1, u2, SketchArguments{"spatial", num_sketches, scale});
  check_linear_input(kName, input, std::nullopt, s1, sketch);
  check_linear_gradient(kName, grad, input, s1, sketch);
  const auto wanted = [&](bool want, const at::Tensor& like) {
    return want ? at::empty_symint(like.sym_sizes(), like.options())
                : at::empty({0}, like.options());
  };
  return {wanted(output_mask[0], input), wanted(output_mask[1], s1), wanted(output_mask[2], s2)};
}

TORCH_LIBRARY_IMPL(sketchlayers, Meta, m) {
  m.impl("sk_linear_factored", TORCH_FN(sk_linear_factored_meta));
  m.impl("sk_linear_factored_backward", TORCH_FN(sk_linear_factored_backward_meta));
}

}  // namespace
}  // namespace sketchlayers
