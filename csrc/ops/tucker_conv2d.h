#pragma once

#include "ops/conv_arguments.h"

namespace sketchlayers {

// The factors of a convolution as filters, with the groups along their first axes:
//   inputs (groups * RS, S, 1, 1), core (groups * RT, RS, h, w), outputs (groups * T, RT, 1, 1).
// Without `inputs` RS is S, without `outputs` RT is T. A core (groups * R, 1, h, w) between factors
// of R = RS = RT features is depthwise: that of a CP decomposition.
struct TuckerFactors {
  const std::optional<at::Tensor>& inputs;
  const at::Tensor& core;
  const std::optional<at::Tensor>& outputs;
};

// Whether it is so.
bool is_depthwise(const TuckerFactors& factors);

// outputs * (core * (inputs * input)) + bias, where core has the convolution's arguments, for input
// (batch, channels, height, width) or without the batch. `path` is "auto", "fused" (in one pass) or
// "plain" (PyTorch's convolutions, one after the other).
at::Tensor tucker_conv2d(const at::Tensor& input, const TuckerFactors& factors,
                         const std::optional<at::Tensor>& bias, const ConvArguments& conv,
                         const std::string& path = "auto");

// A call of tucker_conv2d_fused, for input (batch, channels, height, width); see ops/operator.h.
struct TuckerCall {
  static constexpr const char* kName = "tucker_conv2d_fused";

  const at::Tensor& input;
  TuckerFactors factors;
  const std::optional<at::Tensor>& bias;
  ConvArguments conv;

  template <at::Tensor (*kernel)(const TuckerCall&)>
  static at::Tensor unpacked(const at::Tensor& input, const std::optional<at::Tensor>& inputs,
                             const at::Tensor& core, const std::optional<at::Tensor>& outputs,
                             const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                             at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
    return kernel({input,
                   {inputs, core, outputs},
                   bias,
                   {stride.vec(), padding.vec(), dilation.vec(), groups}});
  }
};

at::Tensor tucker_conv2d_fused(const TuckerCall& call);

// Sizes of one group.
struct Tucker {
  int64_t groups;
  int64_t in_channels;
  int64_t out_channels;
  int64_t input_rank;   // RS
  int64_t output_rank;  // RT
  int64_t kernel_h;
  int64_t kernel_w;
  bool depthwise;
  std::vector<c10::SymInt> output_sizes;
};

// Argument checks, made before any work. Types are compared unless autocast will unify them.
// `op` names the operator that was called, in messages.
Tucker check_call(const TuckerCall& call, const char* op = TuckerCall::kName);

// The same by ATen's convolutions, differentiable; arguments have been checked.
at::Tensor tucker_conv2d_plain(const TuckerCall& call);

}  // namespace sketchlayers
