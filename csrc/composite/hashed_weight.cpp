// Hashed weights from ATen's operations on the entries' places: for transforms, and for devices
// without kernels of their own, whose places are found on the CPU.
#include "ops/hashed_weight.h"

#include <ATen/ops/index.h>
#include <ATen/ops/index_put.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "composite/composed.h"

namespace sketchlayers {
namespace {

at::Tensor with_signs(const at::Tensor& matrix, const at::Tensor& entries) {
  return at::where(entries.lt(0), matrix.neg(), matrix);
}

at::Tensor places(const at::Tensor& entries) {
  return at::where(entries.lt(0), entries.bitwise_not(), entries);
}

// Of 16 bits, a sum over many entries would stop growing.
at::Tensor for_sums(const at::Tensor& tensor) {
  return c10::isReducedFloatingType(tensor.scalar_type()) ? tensor.to(at::kFloat) : tensor;
}

}  // namespace

at::Tensor hashed_weight_composition(const at::Tensor& values, const at::Tensor& seed,
                                     c10::SymInt rows, c10::SymInt columns,
                                     const HashTables& tables) {
  const at::Tensor entries =
      hash_entries(seed, std::move(rows), std::move(columns), values.size(0), tables);
  // Its derivative adds in a fixed order on GPUs too, that of index_select does not.
  const at::Tensor chosen = at::index(for_sums(values), {places(entries)});
  return with_signs(chosen, entries).to(values.scalar_type());
}

at::Tensor hashed_weight_backward_composed(const at::Tensor& grad, const at::Tensor& seed,
                                           int64_t num_values, const HashTables& tables) {
  const at::Tensor entries =
      hash_entries(seed, grad.sym_size(0), grad.sym_size(1), num_values, tables);
  const at::Tensor terms = with_signs(for_sums(grad), entries);
  return at::index_put(at::zeros({num_values}, terms.options()), {places(entries)}, terms,
                       /*accumulate=*/true)
      .to(grad.scalar_type());
}

at::Tensor hash_entries_composed(const at::Tensor& seed, c10::SymInt rows, c10::SymInt columns,
                                 int64_t num_values, const HashTables& tables) {
  return hash_entries(seed.cpu(), std::move(rows), std::move(columns), num_values, tables)
      .to(seed.device());
}

namespace {

at::Tensor hashed_weight_kernel(const at::Tensor& values, const at::Tensor& seed, c10::SymInt rows,
                                c10::SymInt columns, at::IntArrayRef first,
                                at::IntArrayRef buckets) {
  const HashTables tables = check_hashed_weight(values, seed, rows, columns, first, buckets);
  return hashed_weight_composition(values, seed, std::move(rows), std::move(columns), tables);
}

at::Tensor hashed_weight_backward_kernel(const at::Tensor& grad, const at::Tensor& seed,
                                         int64_t num_values, at::IntArrayRef first,
                                         at::IntArrayRef buckets) {
  const HashTables tables = check_hashed_weight_backward(grad, seed, num_values, first, buckets);
  return hashed_weight_backward_composed(grad, seed, num_values, tables);
}

at::Tensor hash_entries_kernel(const at::Tensor& seed, c10::SymInt rows, c10::SymInt columns,
                               int64_t num_values, at::IntArrayRef first, at::IntArrayRef buckets) {
  const HashTables tables = check_hash_entries(seed, rows, columns, num_values, first, buckets);
  return hash_entries_composed(seed, std::move(rows), std::move(columns), num_values, tables);
}

TORCH_LIBRARY_IMPL(sketchlayers, CompositeExplicitAutograd, m) {
  m.impl("hashed_weight", TORCH_FN(hashed_weight_kernel));
  m.impl("hashed_weight_backward", TORCH_FN(hashed_weight_backward_kernel));
  m.impl("hash_entries", TORCH_FN(hash_entries_kernel));
}

// vmap: the parts have batching rules, the whole has none.
TORCH_LIBRARY_IMPL(sketchlayers, FuncTorchBatchedDecomposition, m) {
  m.impl("hashed_weight", TORCH_FN(hashed_weight_kernel));
  m.impl("hashed_weight_backward", TORCH_FN(hashed_weight_backward_kernel));
}

}  // namespace
}  // namespace sketchlayers
