// Gradients of the factored convolution's parameters,
//   dS1[j, c, tap] = sum over pixels of P[j] x[c, shifted by tap],   P = A^T dy,
//   channel mixing  dS2[o, j, tap] = sum over pixels of dy[o] V[j, shifted by tap],   V = B x,
//   spatial mixing  dS2[o, j]      = sum over pixels of dy[o] V[j],                   V = B * x,
// without patches: each tap is a product over the pixels that it connects.
#pragma once

#include "cpu/two_sided_conv.h"

namespace sketchlayers::cpu {

// Sizes of one group; signs carry the scale of the gradients.
struct TwoSidedGradient {
  int64_t images;
  int64_t groups;
  int64_t blocks;  // of inputs for dS1, of outputs for dS2; features are those of all blocks
  int64_t inputs;
  int64_t outputs;
  ConvAxis rows;
  ConvAxis columns;
  Branch first;              // in = A^T, the features P of dy
  Branch second;             // in = B, the features V of x
  float* grad_s1 = nullptr;  // (groups, rank, inputs, positions), or null
  float* grad_s2 = nullptr;  // (groups, outputs, second rank and positions), or null
};

// Rows of both images follow each other without gaps.
template <typename T>
void run(const TwoSidedGradient& gradient, const ImageView<const T>& grad,
         const ImageView<const T>& input);

}  // namespace sketchlayers::cpu
