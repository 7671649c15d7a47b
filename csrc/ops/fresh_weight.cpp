// Filters with hashed cosine coefficients: hashed_weight and one GEMM.
#include <ATen/ops/matmul.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include "ops/checks.h"
#include "ops/hashed_weight.h"
#include "ops/operator.h"

namespace sketchlayers {
namespace {

void check_basis(const at::Tensor& values, const at::Tensor& basis, const HashTables& tables) {
  TORCH_CHECK_TYPE(basis.scalar_type() == at::kFloat || basis.scalar_type() == at::kDouble,
                   "fresh_weight: basis must be float32 or float64 (got ", basis.scalar_type(),
                   ")");
  check_strided("fresh_weight", "basis", basis);
  const int64_t taps = tables.taps();
  TORCH_CHECK(basis.dim() == 2 && basis.sym_size(0) == taps && basis.sym_size(1) == taps,
              "fresh_weight: basis must have a row and a column for each of the ", taps,
              " tables (got shape ", basis.sym_sizes(), ")");
  TORCH_CHECK(basis.device() == values.device(),
              "fresh_weight: basis and values must be on the same device (got ", basis.device(),
              " and ", values.device(), ")");
}

at::Tensor fresh_weight_composite(const at::Tensor& values, const at::Tensor& seed,
                                  const at::Tensor& basis, c10::SymInt rows, c10::SymInt columns,
                                  at::IntArrayRef first, at::IntArrayRef buckets) {
  const HashTables tables = check_hashed_weight(values, seed, rows, columns, first, buckets);
  check_basis(values, basis, tables);
  // Formed in the type of the basis, so that autocast rounds once, when the convolution casts it.
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const at::Tensor frequencies =
      hashed_weight(values.to(basis.scalar_type()), seed, rows, columns, tables);
  return at::matmul(frequencies.reshape_symint({-1, tables.taps()}), basis)
      .reshape_symint({rows, columns})
      .to(values.scalar_type());
}

TORCH_LIBRARY_FRAGMENT(sketchlayers, m) {
  m.def(
      "fresh_weight(Tensor values, Tensor seed, Tensor basis, SymInt rows, SymInt columns, *,"
      " int[] first=[], int[] buckets=[]) -> Tensor",
      TORCH_FN(fresh_weight_composite), {at::Tag::pt2_compliant_tag});
  // vmap: the parts have batching rules, the whole has none.
  m.impl("fresh_weight", torch::dispatch(c10::DispatchKey::FuncTorchBatchedDecomposition,
                                         TORCH_FN(fresh_weight_composite)));
}

}  // namespace

at::Tensor fresh_weight(const at::Tensor& values, const at::Tensor& seed, const at::Tensor& basis,
                        c10::SymInt rows, c10::SymInt columns, const HashTables& tables) {
  static const auto op = find_operator<decltype(fresh_weight_composite)>("fresh_weight");
  return op.call(values, seed, basis, std::move(rows), std::move(columns), tables.first,
                 tables.buckets);
}

}  // namespace sketchlayers
