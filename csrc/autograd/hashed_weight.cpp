// A hashed weight is linear in its values: its derivative is the adjoint, whose derivative is the
// hashed weight again.
#include "ops/hashed_weight.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "composite/composed.h"
#include "ops/operands.h"

namespace sketchlayers {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

void save_tables(AutogradContext* ctx, const HashTables& tables) {
  ctx->saved_data["first"] = tables.first;
  ctx->saved_data["buckets"] = tables.buckets;
}

HashTables saved_tables(AutogradContext* ctx) {
  return {ctx->saved_data["first"].toIntVector(), ctx->saved_data["buckets"].toIntVector()};
}

class HashedWeight : public torch::autograd::Function<HashedWeight> {
 public:
  static constexpr bool is_traceable = true;

  static Variable forward(AutogradContext* ctx, const Variable& values, const at::Tensor& seed,
                          const c10::SymInt& rows, const c10::SymInt& columns,
                          const HashTables& tables) {
    at::AutoDispatchBelowADInplaceOrView guard;
    save_tables(ctx, tables);
    ctx->saved_data["num_values"] = values.size(0);
    ctx->save_for_backward({seed});
    return hashed_weight(values, seed, rows, columns, tables);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    return {hashed_weight_backward(grads[0], saved[0], ctx->saved_data["num_values"].toInt(),
                                   saved_tables(ctx)),
            Variable(), Variable(), Variable(), Variable()};
  }
};

class HashedWeightBackward : public torch::autograd::Function<HashedWeightBackward> {
 public:
  static constexpr bool is_traceable = true;

  static Variable forward(AutogradContext* ctx, const Variable& grad, const at::Tensor& seed,
                          int64_t num_values, const HashTables& tables) {
    at::AutoDispatchBelowADInplaceOrView guard;
    save_tables(ctx, tables);
    ctx->saved_data["rows"] = grad.sym_size(0);
    ctx->saved_data["columns"] = grad.sym_size(1);
    ctx->save_for_backward({seed});
    return hashed_weight_backward(grad, seed, num_values, tables);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    return {hashed_weight(grads[0], saved[0], ctx->saved_data["rows"].toSymInt(),
                          ctx->saved_data["columns"].toSymInt(), saved_tables(ctx)),
            Variable(), Variable(), Variable()};
  }
};

at::Tensor hashed_weight_autograd(const at::Tensor& values, const at::Tensor& seed,
                                  c10::SymInt rows, c10::SymInt columns, at::IntArrayRef first,
                                  at::IntArrayRef buckets) {
  const HashTables tables = check_hashed_weight(values, seed, rows, columns, first, buckets);
  if (under_transform({values})) {
    return hashed_weight_composition(values, seed, rows, columns, tables);
  }
  if (records({values})) return HashedWeight::apply(values, seed, rows, columns, tables);
  at::AutoDispatchBelowADInplaceOrView guard;
  return hashed_weight(values, seed, rows, columns, tables);
}

at::Tensor hashed_weight_backward_autograd(const at::Tensor& grad, const at::Tensor& seed,
                                           int64_t num_values, at::IntArrayRef first,
                                           at::IntArrayRef buckets) {
  const HashTables tables = check_hashed_weight_backward(grad, seed, num_values, first, buckets);
  if (under_transform({grad})) {
    return hashed_weight_backward_composed(grad, seed, num_values, tables);
  }
  if (records({grad})) return HashedWeightBackward::apply(grad, seed, num_values, tables);
  at::AutoDispatchBelowADInplaceOrView guard;
  return hashed_weight_backward(grad, seed, num_values, tables);
}

TORCH_LIBRARY_IMPL(sketchlayers, Autograd, m) {
  m.impl("hashed_weight", TORCH_FN(hashed_weight_autograd));
  m.impl("hashed_weight_backward", TORCH_FN(hashed_weight_backward_autograd));
}

}  // namespace
}  // namespace sketchlayers
