#include "composite/hashed_weight.h"

#include <ATen/ops/index_put.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include "ops/hashed_weight.h"

namespace sketchlayers {
namespace {

at::Tensor with_signs(const at::Tensor& matrix, const at::Tensor& entries) {
  return at::where(entries.lt(0), matrix.neg(), matrix);
}

at::Tensor places(const at::Tensor& entries) {
  return at::where(entries.lt(0), entries.bitwise_not(), entries);
}

}  // namespace

at::Tensor hashed_weight_composition(const at::Tensor& values, const at::Tensor& seed,
                                     c10::SymInt rows, c10::SymInt columns,
                                     const HashTables& tables) {
  const at::Tensor entries =
      hash_entries(seed, std::move(rows), std::move(columns), values.size(0), tables);
  const at::Tensor chosen = at::index_select(values, 0, places(entries).reshape(-1));
  return with_signs(chosen.view_symint(entries.sym_sizes()), entries);
}

at::Tensor hashed_weight_backward_composed(const at::Tensor& grad, const at::Tensor& seed,
                                           int64_t num_values, const HashTables& tables) {
  const at::Tensor entries =
      hash_entries(seed, grad.sym_size(0), grad.sym_size(1), num_values, tables);
  return at::index_put(at::zeros({num_values}, grad.options()), {places(entries)},
                       with_signs(grad, entries), /*accumulate=*/true);
}

}  // namespace sketchlayers
