// What the operators take: one sketched weight
//   W_hat = c frame o (A S1 + S2 B),   A = U1^T / sqrt(k),   B = U2 / sqrt(k h w)
//   (channel: / sqrt(k))
// (Kasiviswanathan, Narodytska, Jin, IJCAI 2018, equation 1, with the l sketches stacked along the
// rank axis). With more than one block the signs are other ones for every block, A for each block
// of the inputs and B for each block of the outputs:
//   W_hat[block j, block i] = c (A_i[block j] S1[block i] + S2[block j] B_j[block i]).
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "ops/mixing.h"

namespace sketchlayers {

// The fixed part of a sketched weight, as an operator receives it.
struct SketchArguments {
  std::string mixing = "spatial";
  int64_t num_sketches = 1;
  std::optional<double> scale = std::nullopt;  // c; absent means 1/(2l)
  std::optional<at::Tensor> frame = std::nullopt;
  int64_t blocks = 1;  // for adjoints; where there are factors, these and the signs tell it
};

// The tensors of a sketched weight: the factors, and the packed signs.
struct SketchTensors {
  const at::Tensor& s1;
  const at::Tensor& s2;
  const at::Tensor& u1;
  const at::Tensor& u2;
};

// The arguments, checked: sizes per group, and the constants of the formula.
struct Sketch {
  int64_t groups;
  int64_t rank;          // l * k; U1 has as many rows for each block
  int64_t blocks;        // of inputs and of outputs, each with signs of its own
  int64_t out_channels;  // of one group
  int64_t in_channels;   // of one group
  int64_t kernel_h;
  int64_t kernel_w;
  Mixing mixing;
  double scale;     // c
  double u1_scale;  // 1 / sqrt(k)
  double u2_scale;  // 1 / sqrt(k h w) or 1 / sqrt(k)
  bool is_linear;   // 2-D parameters of a fully connected layer

  int64_t positions() const { return kernel_h * kernel_w; }
  int64_t inputs() const { return in_channels * positions(); }  // n
  int64_t block_inputs() const { return in_channels / blocks; }
  int64_t block_outputs() const { return out_channels / blocks; }
  // Columns of S2 flattened, as many as U2 has rows for each block: spatial mixing has one for each
  // kernel position.
  int64_t second_rank() const { return mixes_space() ? rank * positions() : rank; }
  // For 1x1 kernels both mixings are the same layer and take the same code.
  bool mixes_space() const { return mixing == Mixing::kSpatial || positions() == 1; }
  bool mixes_channels() const { return mixing == Mixing::kChannel || positions() == 1; }
  std::vector<int64_t> weight_sizes() const;
  std::vector<int64_t> s1_sizes() const;
  std::vector<int64_t> s2_sizes() const;
};

using LayerGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;  // for (input, s1, s2)

// Every rule about s1, s2 and the packed signs; raises before any work is done. `op` names the
// operator in messages.
Sketch check_sketch(const char* op, const SketchTensors& tensors, const SketchArguments& arguments);

// The same for an adjoint, which gets the gradient of the weight in place of s1 and s2.
Sketch check_weight_gradient(const char* op, const at::Tensor& grad, const at::Tensor& u1,
                             const at::Tensor& u2, const SketchArguments& arguments);

// Half types are computed in float32 and rounded once.
inline at::ScalarType compute_type(at::ScalarType type) {
  return type == at::kDouble ? at::kDouble : at::kFloat;
}

// channels_last if any of the tensors suggests it, as at::conv2d does for its input and weight.
at::MemoryFormat common_memory_format(const at::Tensor& a, const at::Tensor& b);

// The tensor with exactly the strides of the format. Tensor::contiguous() leaves a size of 1 any
// stride, and what follows would then take the tensor for one of the other format.
at::Tensor in_format(const at::Tensor& tensor, at::MemoryFormat format);

}  // namespace sketchlayers
