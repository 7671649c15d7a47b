// Rules that sk_linear and sk_conv2d share: what comes with the sketched weight, and by which path.
#pragma once

#include "ops/sketch.h"
#include "plan/plan.h"

namespace sketchlayers {

enum class Path { kAuto, kFactored, kFolded };

// The path that was asked for. "auto" is settled at once where only one path will do: a frame
// and transforms that refuse C++ autograd functions need the folded one.
Path parse_path(const char* op, const std::string& path, const SketchArguments& arguments,
                at::TensorList operands);

// Type and device of `tensor` must be those of s1 (under autocast types may differ).
void check_operand(const char* op, const char* name, const at::Tensor& tensor,
                   const at::Tensor& s1);

void check_bias(const char* op, const std::optional<at::Tensor>& bias, const at::Tensor& s1,
                const Sketch& sketch);

// `grad` must have the sizes of the output.
void check_gradient(const char* op, const at::Tensor& grad, c10::SymIntArrayRef output_sizes,
                    const at::Tensor& s1);

// What the planner must know of a call beside its sizes.
void describe_call(PlanProblem& problem, const at::Tensor& input, const at::Tensor& s1,
                   const at::Tensor& s2);

// Whether a transform is at work that refuses C++ autograd functions: torch.func, or forward-mode
// derivatives of one of these tensors. The weight is then composed of ATen's differentiable
// operations.
bool under_transform(at::TensorList operands);

// Whether autograd has anything to record of a call with these operands. Where it has not, a call
// goes straight to its kernel: a graph that nobody asked for takes longer to build than a small
// layer to compute.
bool records(at::TensorList operands);

}  // namespace sketchlayers
