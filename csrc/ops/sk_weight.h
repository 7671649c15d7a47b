#pragma once

#include <tuple>

#include "ops/sketch.h"

namespace sketchlayers {

using WeightGradients = std::tuple<at::Tensor, at::Tensor>;  // for (s1, s2)

// The dense weight W_hat, (d1, d2/groups, h, w) or (d1, d2).
at::Tensor sk_weight(const at::Tensor& s1, const at::Tensor& s2, const at::Tensor& u1,
                     const at::Tensor& u2, const SketchArguments& arguments);

// The adjoint of the linear part: the gradient of W_hat pulled back to (s1, s2).
WeightGradients sk_weight_backward(const at::Tensor& grad, const at::Tensor& u1,
                                   const at::Tensor& u2, const SketchArguments& arguments);

// What kernels get, see ops/operator.h.
struct WeightCall {
  static constexpr const char* kName = "sk_weight";

  SketchTensors tensors;
  SketchArguments arguments;

  template <at::Tensor (*kernel)(const WeightCall&)>
  static at::Tensor unpacked(const at::Tensor& s1, const at::Tensor& s2, const at::Tensor& u1,
                             const at::Tensor& u2, c10::string_view mixing, int64_t num_sketches,
                             std::optional<double> scale, const std::optional<at::Tensor>& frame) {
    return kernel({{s1, s2, u1, u2}, {std::string(mixing), num_sketches, scale, frame}});
  }
};

struct WeightBackwardCall {
  static constexpr const char* kName = "sk_weight_backward";

  const at::Tensor& grad;
  const at::Tensor& u1;
  const at::Tensor& u2;
  SketchArguments arguments;

  template <WeightGradients (*kernel)(const WeightBackwardCall&)>
  static WeightGradients unpacked(const at::Tensor& grad, const at::Tensor& u1,
                                  const at::Tensor& u2, c10::string_view mixing,
                                  int64_t num_sketches, std::optional<double> scale,
                                  const std::optional<at::Tensor>& frame, int64_t blocks) {
    return kernel({grad, u1, u2, {std::string(mixing), num_sketches, scale, frame, blocks}});
  }
};

// Argument checks, called by every kernel before it does any work.
Sketch check_call(const WeightCall& call);
Sketch check_call(const WeightBackwardCall& call);

}  // namespace sketchlayers
