#include "ops/hashed_weight.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace sketchlayers {
namespace {

at::Tensor hashed_weight_meta(const at::Tensor& values, const at::Tensor& seed, c10::SymInt rows,
                              c10::SymInt columns, at::IntArrayRef first, at::IntArrayRef buckets) {
  check_hashed_weight(values, seed, rows, columns, first, buckets);
  return at::empty_symint({rows, columns}, values.options());
}

at::Tensor hashed_weight_backward_meta(const at::Tensor& grad, const at::Tensor& seed,
                                       int64_t num_values, at::IntArrayRef first,
                                       at::IntArrayRef buckets) {
  check_hashed_weight_backward(grad, seed, num_values, first, buckets);
  return at::empty({num_values}, grad.options());
}

at::Tensor hash_entries_meta(const at::Tensor& seed, c10::SymInt rows, c10::SymInt columns,
                             int64_t num_values, at::IntArrayRef first, at::IntArrayRef buckets) {
  check_hash_entries(seed, rows, columns, num_values, first, buckets);
  return at::empty_symint({rows, columns}, seed.options());
}

TORCH_LIBRARY_IMPL(sketchlayers, Meta, m) {
  m.impl("hashed_weight", TORCH_FN(hashed_weight_meta));
  m.impl("hashed_weight_backward", TORCH_FN(hashed_weight_backward_meta));
  m.impl("hash_entries", TORCH_FN(hash_entries_meta));
}

}  // namespace
}  // namespace sketchlayers
