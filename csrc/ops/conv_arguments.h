// The arguments that all convolutions have, and their checks.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

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

// The dilation for PyTorch's convolutions: 1 along an axis with one tap, where any other changes
// nothing, and crashes some of them (PyTorch 2.14 in float16 on CPUs).
std::vector<int64_t> effective_dilation(const ConvArguments& conv, const at::Tensor& filter);

// Raises unless stride, padding and dilation are two numbers in their ranges, and channels, of all
// groups, can be counted.
void check_conv_arguments(const char* op, const ConvArguments& conv, int64_t in_channels,
                          int64_t out_channels);

// (batch, out_channels, height, width) of the output; raises unless the kernel fits into the padded
// input, and the result can be counted.
std::vector<c10::SymInt> conv_output_sizes(const char* op, const at::Tensor& input,
                                           int64_t out_channels, int64_t kernel_h, int64_t kernel_w,
                                           const ConvArguments& conv);

// The product of two sizes. A symbolic one stays unknown to planners, so that choosing adds no
// guard.
std::optional<int64_t> product_if_known(const c10::SymInt& a, const c10::SymInt& b);

}  // namespace sketchlayers
