#pragma once

#include <array>
#include <tuple>
#include <vector>

#include "ops/sketch.h"

namespace sketchlayers {

// The most that stride, padding and dilation may be, far more than any network has. Above it
// PyTorch's convolutions overflow, or on some processors crash: they multiply by channels and bytes
// in 32 bits, and read as far beyond a small image.
constexpr int64_t kLargestConvStep = int64_t{1} << 15;

// The most channels, and the largest height and width, padded: PyTorch's convolutions count them in
// 32 bits.
constexpr int64_t kLargestConvSize = (int64_t{1} << 31) - 1;

struct ConvArguments {
  std::vector<int64_t> stride{1, 1};
  std::vector<int64_t> padding{0, 0};
  std::vector<int64_t> dilation{1, 1};
  int64_t groups = 1;
};

// conv2d(input, W_hat, bias) for input (batch, channels, height, width) or without the batch;
// `path` is "auto", "factored" or "folded".
at::Tensor sk_conv2d(const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
                     const at::Tensor& u1, const at::Tensor& u2,
                     const std::optional<at::Tensor>& bias, const ConvArguments& conv,
                     const SketchArguments& arguments, const std::string& path = "auto");

// The same without ever forming W_hat, for input (batch, channels, height, width).
at::Tensor sk_conv2d_factored(const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
                              const at::Tensor& u1, const at::Tensor& u2,
                              const std::optional<at::Tensor>& bias, const ConvArguments& conv,
                              const SketchArguments& arguments);

// Gradients for (input, s1, s2); one that `output_mask` leaves out is an empty tensor.
std::tuple<at::Tensor, at::Tensor, at::Tensor> sk_conv2d_factored_backward(
    const at::Tensor& grad, const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
    const at::Tensor& u1, const at::Tensor& u2, std::array<bool, 3> output_mask,
    const ConvArguments& conv, const SketchArguments& arguments);

// The dilation for PyTorch's convolutions: 1 along an axis with one tap, where any other changes
// nothing, and crashes some of them (PyTorch 2.14 in float16 on CPUs).
std::vector<int64_t> effective_dilation(const ConvArguments& conv, const at::Tensor& filter);

// Raises unless input (4-D), bias and the convolution's arguments fit the sketch; returns the
// output's sizes.
std::vector<c10::SymInt> check_conv_input(const char* op, const at::Tensor& input,
                                          const std::optional<at::Tensor>& bias,
                                          const at::Tensor& s1, const Sketch& sketch,
                                          const ConvArguments& conv);

// Raises unless grad has the sizes of the output and the type of the parameters.
void check_conv_gradient(const char* op, const at::Tensor& grad, c10::SymIntArrayRef output_sizes,
                         const at::Tensor& s1);

// All of it, for a kernel of sk_conv2d_factored and of its backward.
Sketch check_factored_conv(const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
                           const at::Tensor& u1, const at::Tensor& u2,
                           const std::optional<at::Tensor>& bias, const ConvArguments& conv,
                           const SketchArguments& arguments);
Sketch check_factored_conv_backward(const at::Tensor& grad, const at::Tensor& input,
                                    const at::Tensor& s1, const at::Tensor& s2,
                                    const at::Tensor& u1, const at::Tensor& u2,
                                    const ConvArguments& conv, const SketchArguments& arguments);

}  // namespace sketchlayers
