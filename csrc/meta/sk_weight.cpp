#include "ops/sk_weight.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace sketchlayers {
namespace {

at::Tensor sk_weight_meta(const at::Tensor& s1, const at::Tensor& s2, const at::Tensor& u1,
                          const at::Tensor& u2, c10::string_view mixing, int64_t num_sketches,
                          std::optional<double> scale, const std::optional<at::Tensor>& base,
                          const std::optional<at::Tensor>& frame) {
  const Sketch sketch = check_sketch("sk_weight", s1, s2, u1, u2,
                                     {std::string(mixing), num_sketches, scale, base, frame});
  return at::empty(sketch.weight_sizes(), s1.options(), common_memory_format(s1, s1));
}

std::tuple<at::Tensor, at::Tensor> sk_weight_backward_meta(
    const at::Tensor& grad, const at::Tensor& u1, const at::Tensor& u2, c10::string_view mixing,
    int64_t num_sketches, std::optional<double> scale, const std::optional<at::Tensor>& frame,
    int64_t blocks) {
  const Sketch sketch = check_weight_gradient(
      "sk_weight_backward", grad, u1, u2,
      {std::string(mixing), num_sketches, scale, std::nullopt, frame, blocks});
  return {at::empty(sketch.s1_sizes(), grad.options()),
          at::empty(sketch.s2_sizes(), grad.options())};
}

TORCH_LIBRARY_IMPL(sketchlayers, Meta, m) {
  m.impl("sk_weight", TORCH_FN(sk_weight_meta));
  m.impl("sk_weight_backward", TORCH_FN(sk_weight_backward_meta));
}

}  // namespace
}  // namespace sketchlayers
