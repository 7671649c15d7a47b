// A sketch's operands as the two-sided kernels take them: forward, and with the roles exchanged for
// the gradient of the input, where S2 filters first and S1 second.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <array>
#include <utility>

#include "cpu/two_sided_conv.h"
#include "cpu/two_sided_gradient.h"
#include "ops/checks.h"
#include "ops/sketch.h"

namespace sketchlayers::cpu {

class Factors {
 public:
  Factors(const SketchTensors& tensors, const Sketch& sketch);

  TwoSidedConv forward(int64_t images, const float* bias) const;
  TwoSidedConv adjoint(int64_t images) const;
  TwoSidedGradient gradient(int64_t images, const ConvAxis& rows, const ConvAxis& columns) const;

 private:
  const Sketch& sketch_;
  at::Tensor s1_, s2_, u1_, u2_;
  Factor filters_, a_, b_, weights_;  // S1, c A, c B, S2
};

// The gradients of s1 and s2 that are wanted, by run(gradient), which sums in float32; empty
// tensors for others.
template <typename Run>
std::pair<at::Tensor, at::Tensor> parameter_gradients(TwoSidedGradient gradient,
                                                      const SketchTensors& tensors,
                                                      const std::array<bool, 3>& output_mask,
                                                      const Run& run) {
  const auto sums = [](bool want, const at::Tensor& like, float*& data) {
    if (!want) return like.new_empty({0});
    const at::Tensor result = at::empty(like.sizes(), like.options().dtype(at::kFloat));
    data = result.mutable_data_ptr<float>();
    return result;
  };
  const at::Tensor s1 = sums(output_mask[1], tensors.s1, gradient.grad_s1);
  const at::Tensor s2 = sums(output_mask[2], tensors.s2, gradient.grad_s2);
  if (output_mask[1] || output_mask[2]) run(gradient);
  const auto rounded = [](const at::Tensor& result, const at::Tensor& like) {
    return in_format(result.to(like.scalar_type()), common_memory_format(like, like));
  };
  return {rounded(s1, tensors.s1), rounded(s2, tensors.s2)};
}

}  // namespace sketchlayers::cpu
