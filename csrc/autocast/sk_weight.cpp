// W_hat is formed in the type of the parameters, so that autocast rounds it once, when the
// convolution casts it.
#include "ops/sk_weight.h"

#include <ATen/autocast_mode.h>
#include <torch/library.h>

namespace sketchlayers {
namespace {

template <c10::DispatchKey key>
at::Tensor sk_weight_autocast(const at::Tensor& s1, const at::Tensor& s2, const at::Tensor& u1,
                              const at::Tensor& u2, c10::string_view mixing, int64_t num_sketches,
                              std::optional<double> scale, const std::optional<at::Tensor>& base,
                              const std::optional<at::Tensor>& frame) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(key);
  return sk_weight(s1, s2, u1, u2, {std::string(mixing), num_sketches, scale, base, frame});
}

template <c10::DispatchKey key>
std::tuple<at::Tensor, at::Tensor> sk_weight_backward_autocast(
    const at::Tensor& grad, const at::Tensor& u1, const at::Tensor& u2, c10::string_view mixing,
    int64_t num_sketches, std::optional<double> scale, const std::optional<at::Tensor>& frame,
    int64_t blocks) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(key);
  return sk_weight_backward(
      grad, u1, u2, {std::string(mixing), num_sketches, scale, std::nullopt, frame, blocks});
}

template <c10::DispatchKey key>
void register_sk_weight(torch::Library& m) {
  m.impl("sk_weight", TORCH_FN(sk_weight_autocast<key>));
  m.impl("sk_weight_backward", TORCH_FN(sk_weight_backward_autocast<key>));
}

TORCH_LIBRARY_IMPL(sketchlayers, AutocastCPU, m) {
  register_sk_weight<c10::DispatchKey::AutocastCPU>(m);
}

TORCH_LIBRARY_IMPL(sketchlayers, AutocastCUDA, m) {
  register_sk_weight<c10::DispatchKey::AutocastCUDA>(m);
}

}  // namespace
}  // namespace sketchlayers
