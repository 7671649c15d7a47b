#include "ops/sk_conv2d.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace sketchlayers {
namespace {

at::Tensor sk_conv2d_factored_meta(const at::Tensor& input, const at::Tensor& s1,
                                   const at::Tensor& s2, const at::Tensor& u1, const at::Tensor& u2,
                                   const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                                   at::IntArrayRef padding, at::IntArrayRef dilation,
                                   int64_t groups, c10::string_view mixing, int64_t num_sketches,
                                   std::optional<double> scale) {
  constexpr const char* kName = "sk_conv2d_factored";
  const Sketch sketch = check_sketch(kName, s1, s2, u1, u2,
                                     SketchArguments{std::string(mixing), num_sketches, scale});
  const auto sizes =
      check_conv_input(kName, input, bias, s1, sketch,
                       ConvArguments{stride.vec(), padding.vec(), dilation.vec(), groups});
  return at::empty_symint(sizes, input.options(), common_memory_format(input, s1));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> sk_conv2d_factored_backward_meta(
    const at::Tensor& grad, const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
    const at::Tensor& u1, const at::Tensor& u2, std::array<bool, 3> output_mask,
    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
    c10::string_view mixing, int64_t num_sketches, std::optional<double> scale) {
  constexpr const char* kName = "sk_conv2d_factored_backward";
  const Sketch sketch = check_sketch(kName, s1, s2, u1, u2,
                                     SketchArguments{std::string(mixing), num_sketches, scale});
  const auto sizes =
      check_conv_input(kName, input, std::nullopt, s1, sketch,
                       ConvArguments{stride.vec(), padding.vec(), dilation.vec(), groups});
  check_conv_gradient(kName, grad, sizes, s1);
  const auto wanted = [](bool want, const at::Tensor& like) {
    return want ? at::empty_symint(like.sym_sizes(), like.options(),
                                   common_memory_format(like, like))
                : at::empty({0}, like.options());
  };
  return {wanted(output_mask[0], input), wanted(output_mask[1], s1), wanted(output_mask[2], s2)};
}

TORCH_LIBRARY_IMPL(sketchlayers, Meta, m) {
  m.impl("sk_conv2d_factored", TORCH_FN(sk_conv2d_factored_meta));
  m.impl("sk_conv2d_factored_backward", TORCH_FN(sk_conv2d_factored_backward_meta));
}

}  // namespace
}  // namespace sketchlayers
