#pragma once

#include <array>

#include "ops/sketch.h"

namespace sketchlayers {

// y = x W_hat^T + bias for x (..., d2); `path` is "auto", "factored" or "folded".
at::Tensor sk_linear(const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
                     const at::Tensor& u1, const at::Tensor& u2,
                     const std::optional<at::Tensor>& bias, const SketchArguments& arguments,
                     const std::string& path = "auto");

// A call of sk_linear_factored, the same without ever forming W_hat; see ops/operator.h.
struct LinearCall {
  static constexpr const char* kName = "sk_linear_factored";

  const at::Tensor& input;
  SketchTensors tensors;
  const std::optional<at::Tensor>& bias;
  SketchArguments arguments;

  template <at::Tensor (*kernel)(const LinearCall&)>
  static at::Tensor unpacked(const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
                             const at::Tensor& u1, const at::Tensor& u2,
                             const std::optional<at::Tensor>& bias, int64_t num_sketches,
                             std::optional<double> scale) {
    return kernel({input, {s1, s2, u1, u2}, bias, {"spatial", num_sketches, scale}});
  }
};

struct LinearBackwardCall {
  static constexpr const char* kName = "sk_linear_factored_backward";

  const at::Tensor& grad;
  const at::Tensor& input;
  SketchTensors tensors;
  std::array<bool, 3> output_mask;  // which gradients are wanted; others are empty tensors
  SketchArguments arguments;

  template <LayerGradients (*kernel)(const LinearBackwardCall&)>
  static LayerGradients unpacked(const at::Tensor& grad, const at::Tensor& input,
                                 const at::Tensor& s1, const at::Tensor& s2, const at::Tensor& u1,
                                 const at::Tensor& u2, std::array<bool, 3> output_mask,
                                 int64_t num_sketches, std::optional<double> scale) {
    return kernel({grad, input, {s1, s2, u1, u2}, output_mask, {"spatial", num_sketches, scale}});
  }
};

at::Tensor sk_linear_factored(const LinearCall& call);
LayerGradients sk_linear_factored_backward(const LinearBackwardCall& call);

// Argument checks, called by every kernel before it does any work: that input (..., d2) and bias
// (d1) fit the sketch, and that grad has the shape of the output, (..., d1). Types are compared
// unless autocast will unify them.
Sketch check_call(const LinearCall& call);
Sketch check_call(const LinearBackwardCall& call);

}  // namespace sketchlayers
