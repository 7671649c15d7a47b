// Autocast, for all operators alike, as a boxed function: their arguments need not be listed again.
#include <ATen/autocast_mode.h>
#include <ATen/core/stack.h>
#include <torch/library.h>

namespace sketchlayers {
namespace {

// As for aten::conv2d and aten::linear: float32 operands are cast to autocast's lower type of their
// device, parameters through autocast's cache. Packed signs, which are integers, stay.
template <c10::DispatchKey key>
void call_lowered(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(key);
  for (size_t i = stack->size() - op.schema().arguments().size(); i < stack->size(); ++i) {
    if (!(*stack)[i].isTensor()) continue;
    const at::Tensor tensor = (*stack)[i].toTensor();
    const auto device = tensor.device().type();
    const auto type = at::autocast::get_autocast_dtype(device);
    (*stack)[i] = at::autocast::cached_cast(type, tensor, device);
  }
  op.callBoxed(stack);
}

// W_hat is formed in the type of the parameters, so that autocast rounds it once, when the
// convolution casts it; gradients have the types of what was computed.
template <c10::DispatchKey key>
void call_as_it_is(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(key);
  op.callBoxed(stack);
}

template <c10::DispatchKey key>
void register_operators(torch::Library& m) {
  for (const char* name : {"sk_conv2d_factored", "sk_linear_factored", "tucker_conv2d_fused"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<call_lowered<key>>());
  }
  for (const char* name : {"sk_conv2d_factored_backward", "sk_linear_factored_backward",
                           "sk_weight", "sk_weight_backward"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<call_as_it_is<key>>());
  }
}

TORCH_LIBRARY_IMPL(sketchlayers, AutocastCPU, m) {
  register_operators<c10::DispatchKey::AutocastCPU>(m);
}

TORCH_LIBRARY_IMPL(sketchlayers, AutocastCUDA, m) {
  register_operators<c10::DispatchKey::AutocastCUDA>(m);
}

}  // namespace
}  // namespace sketchlayers
