#pragma once

#include <array>
#include <vector>

#include "ops/conv_arguments.h"
#include "ops/sketch.h"

namespace sketchlayers {

// conv2d(input, W_hat, bias) for input (batch, channels, height, width) or without the batch;
// `path` is "auto", "factored" or "folded".
at::Tensor sk_conv2d(const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
                     const at::Tensor& u1, const at::Tensor& u2,
                     const std::optional<at::Tensor>& bias, const ConvArguments& conv,
                     const SketchArguments& arguments, const std::string& path = "auto");

// A call of sk_conv2d_factored, the same without ever forming W_hat, for input (batch, channels,
// height, width); see ops/operator.h.
struct ConvCall {
  static constexpr const char* kName = "sk_conv2d_factored";

  const at::Tensor& input;
  SketchTensors tensors;
  const std::optional<at::Tensor>& bias;
  ConvArguments conv;
  SketchArguments arguments;

  template <at::Tensor (*kernel)(const ConvCall&)>
  static at::Tensor unpacked(const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
                             const at::Tensor& u1, const at::Tensor& u2,
                             const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                             at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                             c10::string_view mixing, int64_t num_sketches,
                             std::optional<double> scale) {
    return kernel({input,
                   {s1, s2, u1, u2},
                   bias,
                   {stride.vec(), padding.vec(), dilation.vec(), groups},
                   {std::string(mixing), num_sketches, scale}});
  }
};

struct ConvBackwardCall {
  static constexpr const char* kName = "sk_conv2d_factored_backward";

  const at::Tensor& grad;
  const at::Tensor& input;
  SketchTensors tensors;
  std::array<bool, 3> output_mask;  // which gradients are wanted; others are empty tensors
  ConvArguments conv;
  SketchArguments arguments;

  template <LayerGradients (*kernel)(const ConvBackwardCall&)>
  static LayerGradients unpacked(const at::Tensor& grad, const at::Tensor& input,
                                 const at::Tensor& s1, const at::Tensor& s2, const at::Tensor& u1,
                                 const at::Tensor& u2, std::array<bool, 3> output_mask,
                                 at::IntArrayRef stride, at::IntArrayRef padding,
                                 at::IntArrayRef dilation, int64_t groups, c10::string_view mixing,
                                 int64_t num_sketches, std::optional<double> scale) {
    return kernel({grad,
                   input,
                   {s1, s2, u1, u2},
                   output_mask,
                   {stride.vec(), padding.vec(), dilation.vec(), groups},
                   {std::string(mixing), num_sketches, scale}});
  }
};

at::Tensor sk_conv2d_factored(const ConvCall& call);
LayerGradients sk_conv2d_factored_backward(const ConvBackwardCall& call);

struct CheckedConv {
  Sketch sketch;
  std::vector<c10::SymInt> output_sizes;
};

// Argument checks, called by every kernel before it does any work: that input (4-D), bias and the
// convolution's arguments fit the sketch, and that grad has the sizes of the output.
CheckedConv check_call(const ConvCall& call);
CheckedConv check_call(const ConvBackwardCall& call);

}  // namespace sketchlayers
