// What each operator gives for tensors without data: its checks, and the sizes and strides of
// results.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <type_traits>

#include "ops/hashed_weight.h"
#include "ops/sign_matrix.h"
#include "ops/sk_conv2d.h"
#include "ops/sk_linear.h"
#include "ops/sk_weight.h"
#include "ops/tucker_conv2d.h"
#include "signs.h"

namespace sketchlayers {
namespace {

at::Tensor sign_matrix_meta(int64_t seed, int64_t matrix, c10::SymInt rows, c10::SymInt columns,
                            std::optional<at::Device> /*device*/) {
  check_sign_matrix(seed, matrix, rows, columns);
  return at::empty_symint({rows, sign_words(columns)},
                          at::TensorOptions().dtype(at::kInt).device(at::kMeta));
}

at::Tensor unpack_signs_meta(const at::Tensor& packed, c10::SymInt columns, c10::SymInt start,
                             at::ScalarType dtype, double /*scale*/) {
  check_unpack_signs(packed, columns, start, dtype);
  auto sizes = packed.sym_sizes().vec();
  sizes.back() = columns;
  return at::empty_symint(sizes, packed.options().dtype(dtype));
}

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

at::Tensor sk_weight_meta(const WeightCall& call) {
  const at::Tensor& s1 = call.tensors.s1;
  return at::empty(check_call(call).weight_sizes(), s1.options(), common_memory_format(s1, s1));
}

WeightGradients sk_weight_backward_meta(const WeightBackwardCall& call) {
  const Sketch sketch = check_call(call);
  return {at::empty(sketch.s1_sizes(), call.grad.options()),
          at::empty(sketch.s2_sizes(), call.grad.options())};
}

at::Tensor sk_linear_factored_meta(const LinearCall& call) {
  const Sketch sketch = check_call(call);
  auto sizes = call.input.sym_sizes().vec();
  sizes.back() = sketch.out_channels;
  return at::empty_symint(sizes, call.input.options());
}

at::Tensor sk_conv2d_factored_meta(const ConvCall& call) {
  return at::empty_symint(check_call(call).output_sizes, call.input.options(),
                          common_memory_format(call.input, call.tensors.s1));
}

at::Tensor tucker_conv2d_fused_meta(const TuckerCall& call) {
  return at::empty_symint(check_call(call).output_sizes, call.input.options(),
                          common_memory_format(call.input, call.factors.core));
}

template <typename Call>
LayerGradients layer_gradients_meta(const Call& call) {
  check_call(call);
  const auto wanted = [](bool want, const at::Tensor& like, at::MemoryFormat format) {
    return want ? at::empty_symint(like.sym_sizes(), like.options(), format)
                : at::empty({0}, like.options());
  };
  const auto& [s1, s2, u1, u2] = call.tensors;
  const bool convolves = std::is_same_v<Call, ConvBackwardCall>;
  return {wanted(call.output_mask[0], call.input,
                 convolves ? common_memory_format(call.input, call.input)
                           : at::MemoryFormat::Contiguous),
          wanted(call.output_mask[1], s1, common_memory_format(s1, s1)),
          wanted(call.output_mask[2], s2, common_memory_format(s2, s2))};
}

TORCH_LIBRARY_IMPL(sketchlayers, Meta, m) {
  m.impl("sign_matrix", TORCH_FN(sign_matrix_meta));
  m.impl("unpack_signs", TORCH_FN(unpack_signs_meta));
  m.impl("hashed_weight", TORCH_FN(hashed_weight_meta));
  m.impl("hashed_weight_backward", TORCH_FN(hashed_weight_backward_meta));
  m.impl("hash_entries", TORCH_FN(hash_entries_meta));
  m.impl("sk_weight", TORCH_FN(WeightCall::unpacked<sk_weight_meta>));
  m.impl("sk_weight_backward", TORCH_FN(WeightBackwardCall::unpacked<sk_weight_backward_meta>));
  m.impl("sk_linear_factored", TORCH_FN(LinearCall::unpacked<sk_linear_factored_meta>));
  m.impl("sk_linear_factored_backward",
         TORCH_FN(LinearBackwardCall::unpacked<layer_gradients_meta<LinearBackwardCall>>));
  m.impl("sk_conv2d_factored", TORCH_FN(ConvCall::unpacked<sk_conv2d_factored_meta>));
  m.impl("tucker_conv2d_fused", TORCH_FN(TuckerCall::unpacked<tucker_conv2d_fused_meta>));
  m.impl("sk_conv2d_factored_backward",
         TORCH_FN(ConvBackwardCall::unpacked<layer_gradients_meta<ConvBackwardCall>>));
}

}  // namespace
}  // namespace sketchlayers
