// The operators from ATen's convolutions, GEMMs and indexing: what a device's own kernel falls back
// to for what it does not take. Like every kernel they check their arguments.
#pragma once

#include "ops/hashed_weight.h"
#include "ops/sign_matrix.h"
#include "ops/sk_conv2d.h"
#include "ops/sk_linear.h"
#include "ops/sk_weight.h"

namespace sketchlayers {

at::Tensor sk_conv2d_composed(const ConvCall& call);
LayerGradients sk_conv2d_composed_backward(const ConvBackwardCall& call);

at::Tensor sk_linear_composed(const LinearCall& call);
LayerGradients sk_linear_composed_backward(const LinearBackwardCall& call);

at::Tensor sk_weight_composed(const WeightCall& call);
WeightGradients sk_weight_composed_backward(const WeightBackwardCall& call);

// sk_weight and hashed_weight as one differentiable composition of ATen operations, for transforms
// that refuse C++ autograd functions (torch.func).
at::Tensor sk_weight_composition(const WeightCall& call);
at::Tensor hashed_weight_composition(const at::Tensor& values, const at::Tensor& seed,
                                     c10::SymInt rows, c10::SymInt columns,
                                     const HashTables& tables);

// The adjoint from hash_entries and a sorting sum; arguments have been checked.
at::Tensor hashed_weight_backward_composed(const at::Tensor& grad, const at::Tensor& seed,
                                           int64_t num_values, const HashTables& tables);

// Found on the CPU and copied to the device of the seed, which cannot be captured in a CUDA graph;
// arguments have been checked.
at::Tensor hash_entries_composed(const at::Tensor& seed, c10::SymInt rows, c10::SymInt columns,
                                 int64_t num_values, const HashTables& tables);

// Made on the CPU and copied, too.
at::Tensor sign_matrix_composed(int64_t seed, int64_t matrix, int64_t rows, int64_t columns,
                                std::optional<at::Device> device);
at::Tensor unpack_signs_composed(const at::Tensor& packed, int64_t columns, int64_t start,
                                 at::ScalarType dtype, double scale);

}  // namespace sketchlayers
