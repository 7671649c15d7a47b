#pragma once

#include "ops/hashed_weight.h"

namespace sketchlayers {

// hashed_weight as one differentiable composition of ATen operations on hash_entries, for
// transforms that refuse C++ autograd functions (torch.func).
at::Tensor hashed_weight_composition(const at::Tensor& values, const at::Tensor& seed,
                                     c10::SymInt rows, c10::SymInt columns,
                                     const HashTables& tables);

// The adjoint from hash_entries and a sorting sum, for what a device's own kernel does not take.
at::Tensor hashed_weight_backward_composed(const at::Tensor& grad, const at::Tensor& seed,
                                           int64_t num_values, const HashTables& tables);

}  // namespace sketchlayers
