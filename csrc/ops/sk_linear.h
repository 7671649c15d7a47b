#pragma once

#include <array>
#include <tuple>

#include "ops/sketch.h"

namespace sketchlayers {

// y = x W_hat^T + bias for x (..., d2); `path` is "auto", "factored" or "folded".
at::Tensor sk_linear(const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
                     const at::Tensor& u1, const at::Tensor& u2,
                     const std::optional<at::Tensor>& bias, const SketchArguments& arguments,
                     const std::string& path = "auto");

// The same without ever forming W_hat.
at::Tensor sk_linear_factored(const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
                              const at::Tensor& u1, const at::Tensor& u2,
                              const std::optional<at::Tensor>& bias,
                              const SketchArguments& arguments);

// Gradients for (input, s1, s2); one that `output_mask` leaves out is an empty tensor.
std::tuple<at::Tensor, at::Tensor, at::Tensor> sk_linear_factored_backward(
    const at::Tensor& grad, const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
    const at::Tensor& u1, const at::Tensor& u2, std::array<bool, 3> output_mask,
    const SketchArguments& arguments);

// Raises unless input (..., d2) and bias (d1) fit the sketch. Types are compared unless autocast
// will unify them.
void check_linear_input(const char* op, const at::Tensor& input,
                        const std::optional<at::Tensor>& bias, const at::Tensor& s1,
                        const Sketch& sketch);

// Raises unless grad has the shape of the output, (..., d1), and the type of the parameters.
void check_linear_gradient(const char* op, const at::Tensor& grad, const at::Tensor& input,
                           const at::Tensor& s1, const Sketch& sketch);

// All of it, for a kernel of sk_linear_factored and of its backward.
Sketch check_factored_linear(const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
                             const at::Tensor& u1, const at::Tensor& u2,
                             const std::optional<at::Tensor>& bias,
                             const SketchArguments& arguments);
Sketch check_factored_linear_backward(const at::Tensor& grad, const at::Tensor& input,
                                      const at::Tensor& s1, const at::Tensor& s2,
                                      const at::Tensor& u1, const at::Tensor& u2,
                                      const SketchArguments& arguments);

}  // namespace sketchlayers
