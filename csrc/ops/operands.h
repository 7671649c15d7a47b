// Rules that sk_linear and sk_conv2d share: what comes with the sketched weight, and by which path.
#pragma once

#include "ops/sketch.h"

namespace sketchlayers {

enum class Path { kAuto, kFactored, kFolded };

Path parse_path(const char* op, const std::string& path, const SketchArguments& arguments);

// Type and device of `tensor` must be those of s1 (under autocast types may differ).
void check_operand(const char* op, const char* name, const at::Tensor& tensor,
                   const at::Tensor& s1);

void check_bias(const char* op, const std::optional<at::Tensor>& bias, const at::Tensor& s1,
                const Sketch& sketch);

// Whether gradients for the parameters will be wanted, which makes forming W_hat dearer.
bool trains(const at::Tensor& s1, const at::Tensor& s2);

// torch.func refuses C++ autograd functions, so there the weight is folded from differentiable ATen
// operations.
bool inside_torch_func();

}  // namespace sketchlayers
