// Derivatives of tucker_conv2d_fused: those of PyTorch's convolutions, one after the other, with
// the features computed again. They are differentiable themselves, so derivatives of every order
// exist.
#include "ops/tucker_conv2d.h"

#include <ATen/ops/conv2d.h>
#include <ATen/ops/convolution_backward.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>

#include "ops/operands.h"

namespace sketchlayers {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// One convolution of the chain.
struct Link {
  at::Tensor filter;
  ConvArguments conv;
  c10::SymInt groups;

  at::Tensor forward(const at::Tensor& input) const {
    return at::conv2d_symint(input, filter, std::nullopt, c10::fromIntArrayRefSlow(conv.stride),
                             c10::fromIntArrayRefSlow(conv.padding),
                             c10::fromIntArrayRefSlow(conv.dilation), groups);
  }

  // Gradients of the input and of the filter.
  std::array<at::Tensor, 2> backward(const at::Tensor& grad, const at::Tensor& input,
                                     std::array<bool, 2> mask) const {
    auto [grad_input, grad_filter, none] = at::convolution_backward_symint(
        grad, input, filter, std::nullopt, c10::fromIntArrayRefSlow(conv.stride),
        c10::fromIntArrayRefSlow(conv.padding), c10::fromIntArrayRefSlow(conv.dilation), false,
        std::vector<c10::SymInt>{0, 0}, groups, {mask[0], mask[1], false});
    return {grad_input, grad_filter};
  }
};

class TuckerConv : public torch::autograd::Function<TuckerConv> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input,
                            const std::optional<at::Tensor>& inputs, const at::Tensor& core,
                            const std::optional<at::Tensor>& outputs,
                            const std::optional<at::Tensor>& bias, const ConvArguments& conv) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const at::Tensor none;
    ctx->save_for_backward({input, inputs.value_or(none), core, outputs.value_or(none)});
    ctx->saved_data["stride"] = conv.stride;
    ctx->saved_data["padding"] = conv.padding;
    ctx->saved_data["dilation"] = conv.dilation;
    ctx->saved_data["groups"] = conv.groups;
    ctx->saved_data["has_bias"] = bias.has_value();
    return tucker_conv2d_fused({input, {inputs, core, outputs}, bias, conv});
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    auto& data = ctx->saved_data;
    const at::Tensor &inputs = saved[1], &core = saved[2], &outputs = saved[3];
    const auto given = [](const at::Tensor& filter) {
      return filter.defined() ? std::make_optional(filter) : std::nullopt;
    };
    const int64_t groups = data["groups"].toInt();
    ConvArguments conv{data["stride"].toIntVector(), data["padding"].toIntVector(),
                       data["dilation"].toIntVector(), groups};
    conv.dilation = effective_dilation(conv, core);
    const bool depthwise = is_depthwise({given(inputs), core, given(outputs)});

    std::vector<Link> links;
    std::vector<int> places;  // of the filters among the operands
    const auto add = [&](int place, const at::Tensor& filter, const ConvArguments& arguments,
                         const c10::SymInt& count) {
      if (!filter.defined()) return;
      links.push_back({filter, arguments, count});
      places.push_back(place);
    };
    add(1, inputs, {}, groups);
    add(2, core, conv, depthwise ? core.sym_size(0) : c10::SymInt(groups));
    add(3, outputs, {}, groups);
    // Edges are those of the tensors that are there.
    const bool has_inputs = inputs.defined();
    const auto needs_gradient = [&](int place) {
      return ctx->needs_input_grad(static_cast<size_t>(place - (place > 1 && !has_inputs) -
                                                       (place > 3 && !outputs.defined())));
    };
    std::vector<at::Tensor> features{saved[0]};  // what each link reads
    for (size_t i = 0; i + 1 < links.size(); ++i) {
      features.push_back(links[i].forward(features[i]));
    }
    variable_list result(6);
    if (data["has_bias"].toBool() && needs_gradient(4)) result[4] = grads[0].sum({0, 2, 3});
    // How far back gradients are wanted.
    bool before = needs_gradient(0);
    std::vector<bool> wanted;  // of what a link reads
    for (const int place : places) {
      wanted.push_back(before);
      before = before || needs_gradient(place);
    }
    at::Tensor grad = grads[0];
    for (size_t i = links.size(); i-- > 0;) {
      const auto place = static_cast<size_t>(places[i]);
      const bool filter = needs_gradient(places[i]);
      if (!filter && !wanted[i]) break;
      auto [grad_input, grad_filter] = links[i].backward(grad, features[i], {wanted[i], filter});
      if (filter) result[place] = grad_filter;
      grad = grad_input;
      if (i == 0 && wanted[0]) result[0] = grad_input;
    }
    return result;
  }
};

at::Tensor tucker_conv2d_fused_autograd(const TuckerCall& call) {
  const auto& [input, factors, bias, conv] = call;
  const at::Tensor none;
  if (records({input, factors.inputs.value_or(none), factors.core, factors.outputs.value_or(none),
               bias.value_or(none)})) {
    return TuckerConv::apply(input, factors.inputs, factors.core, factors.outputs, bias, conv);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return tucker_conv2d_fused(call);
}

TORCH_LIBRARY_IMPL(sketchlayers, Autograd, m) {
  m.impl("tucker_conv2d_fused", TORCH_FN(TuckerCall::unpacked<tucker_conv2d_fused_autograd>));
}

}  // namespace
}  // namespace sketchlayers
