// A sketch's operands as the two-sided kernels take them: forward, and with the roles exchanged for
// the gradient of the input, where S2 filters first and S1 second.
#pragma once

#include <ATen/core/Tensor.h>

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

  const float* s1() const { return s1_.const_data_ptr<float>(); }
  const float* s2() const { return s2_.const_data_ptr<float>(); }
  const Signs& output_signs() const { return a_.signs; }  // c A^T
  const Signs& input_signs() const { return b_.signs; }   // c B

 private:
  const Sketch& sketch_;
  at::Tensor s1_, s2_, u1_, u2_;
  Factor filters_, a_, b_, weights_;  // S1, c A, c B, S2
};

}  // namespace sketchlayers::cpu
