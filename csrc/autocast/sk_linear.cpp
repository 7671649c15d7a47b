// As for aten::linear: float32 operands are cast to autocast's lower type.
#include "ops/sk_linear.h"

#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "autocast/lower.h"

namespace sketchlayers {
namespace {

template <c10::DispatchKey key>
at::Tensor sk_linear_factored_autocast(const at::Tensor& input, const at::Tensor& s1,
                                       const at::Tensor& s2, const at::Tensor& u1,
                                       const at::Tensor& u2, const std::optional<at::Tensor>& bias,
                                       int64_t num_sketches, std::optional<double> scale) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(key);
  return sk_linear_factored(lower(input), lower(s1), lower(s2), u1, u2, lower(bias),
                            {"spatial", num_sketches, scale});
}

template <c10::DispatchKey key>
std::tuple<at::Tensor, at::Tensor, at::Tensor> sk_linear_factored_backward_autocast(
    const at::Tensor& grad, const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
    const at::Tensor& u1, const at::Tensor& u2, std::array<bool, 3> output_mask,
    int64_t num_sketches, std::optional<double> scale) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(key);
  return sk_linear_factored_backward(grad, input, s1, s2, u1, u2, output_mask,
                                     {"spatial", num_sketches, scale});
}

template <c10::DispatchKey key>
void register_sk_linear(torch::Library& m) {
  m.impl("sk_linear_factored", TORCH_FN(sk_linear_factored_autocast<key>));
  m.impl("sk_linear_factored_backward", TORCH_FN(sk_linear_factored_backward_autocast<key>));
}

TORCH_LIBRARY_IMPL(sketchlayers, AutocastCPU, m) {
  register_sk_linear<c10::DispatchKey::AutocastCPU>(m);
}

TORCH_LIBRARY_IMPL(sketchlayers, AutocastCUDA, m) {
  register_sk_linear<c10::DispatchKey::AutocastCUDA>(m);
}

}  // namespace
}  // namespace sketchlayers
