// sk_conv2d_factored on the CPU, by our own kernels but for float64 and rare geometries.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "composite/composed.h"
#include "cpu/allocate.h"
#include "cpu/conv_geometry.h"
#include "cpu/factors.h"
#include "cpu/panel_conv.h"
#include "cpu/panel_operands.h"

namespace sketchlayers {
namespace {

// The gradient through a stride takes one pass for each of its phases.
bool has_many_phases(const ConvArguments& conv) {
  constexpr int64_t kMost = 4;
  return conv.stride[0] > kMost || conv.stride[1] > kMost;
}

bool takes(const at::Tensor& input) {
  return computes_in_float(input.scalar_type()) && input.numel() > 0;
}

// Rows so wide, or taps so far apart, that the tiles' buffers would be large.
bool fits(const cpu::TwoSidedConv& conv, const std::vector<cpu::Sampling>& samplings,
          const cpu::ConvGeometry& geometry) {
  if (!geometry.is_narrow()) return false;
  for (const cpu::Sampling& sampling : samplings) {
    if (!cpu::fits(conv, sampling)) return false;
  }
  return true;
}

template <typename T>
void run(const cpu::TwoSidedConv& conv, const std::vector<cpu::Sampling>& samplings,
         const cpu::ConvGeometry& geometry, const at::Tensor& input, const at::Tensor& output) {
  const auto source = geometry.view(input, input.const_data_ptr<T>());
  const auto target = geometry.view(output, output.mutable_data_ptr<T>());
  for (const cpu::Sampling& sampling : samplings) cpu::run<T>(conv, sampling, source, target);
}

at::Tensor sk_conv2d_factored_cpu(const ConvCall& call) {
  const auto& [input, tensors, bias, arguments, sketch_arguments] = call;
  const auto [sketch, symbolic_sizes] = check_call(call);
  if (!takes(input)) return sk_conv2d_composed(call);
  const at::IntArrayRef sizes = C10_AS_INTARRAYREF_SLOW(symbolic_sizes);
  cpu::ConvGeometry geometry(input, sizes, sketch.kernel_h, sketch.kernel_w, arguments);
  const at::Tensor images = cpu::dense_images(input);
  const auto format = common_memory_format(input, tensors.s1);
  if (geometry.pointwise && cpu::channels_together(images) &&
      format == at::MemoryFormat::ChannelsLast) {
    geometry.merge_images();
  }
  const at::Tensor offset = bias ? bias->to(at::kFloat).contiguous() : at::Tensor();
  if (sketch.mixes_channels() && cpu::takes_panels(input.scalar_type(), sketch)) {
    const at::Tensor output = cpu::empty_result(sizes, input.options(), format);
    cpu::conv_by_panels(images, tensors, sketch, geometry,
                        bias ? offset.const_data_ptr<float>() : nullptr, output);
    return in_format(output, format);
  }
  const cpu::Factors factors(tensors, sketch);
  const cpu::TwoSidedConv conv =
      factors.forward(geometry.images, bias ? offset.const_data_ptr<float>() : nullptr);
  const std::vector<cpu::Sampling> samplings{
      cpu::forward_sampling(geometry.rows, geometry.columns)};
  if (!fits(conv, samplings, geometry)) return sk_conv2d_composed(call);
  const at::Tensor output = cpu::empty_result(sizes, input.options(), format);
  for_type(input.scalar_type(),
           [&](auto zero) { run<decltype(zero)>(conv, samplings, geometry, images, output); });
  return in_format(output, format);
}

at::Tensor input_gradient(const at::Tensor& grad, const at::Tensor& input,
                          const cpu::TwoSidedConv& conv,
                          const std::vector<cpu::Sampling>& samplings,
                          const cpu::ConvGeometry& geometry) {
  const auto format = common_memory_format(input, input);
  const at::Tensor result = cpu::empty_result(input.sizes(), input.options(), format);
  for_type(input.scalar_type(),
           [&](auto zero) { run<decltype(zero)>(conv, samplings, geometry, grad, result); });
  return in_format(result, format);
}

LayerGradients sk_conv2d_factored_backward_cpu(const ConvBackwardCall& call) {
  const auto& [grad, input, tensors, output_mask, arguments, sketch_arguments] = call;
  const Sketch sketch = check_call(call).sketch;
  if (!takes(input) || has_many_phases(arguments)) return sk_conv2d_composed_backward(call);
  const cpu::ConvGeometry geometry(input, grad.sizes(), sketch.kernel_h, sketch.kernel_w,
                                   arguments);
  if (sketch.mixes_channels() && cpu::takes_panels(input.scalar_type(), sketch)) {
    return cpu::conv_by_panels_backward(cpu::dense_images(grad), cpu::dense_images(input), tensors,
                                        sketch, geometry, output_mask);
  }
  const cpu::Factors factors(tensors, sketch);
  const cpu::TwoSidedConv conv = factors.adjoint(geometry.images);
  const auto samplings = cpu::adjoint_samplings(geometry.rows, geometry.columns);
  if (!fits(conv, samplings, geometry)) return sk_conv2d_composed_backward(call);

  const at::Tensor images = cpu::dense_images(input);
  const at::Tensor grads = cpu::dense_images(grad);
  at::Tensor grad_input = input.new_empty({0});
  if (output_mask[0]) grad_input = input_gradient(grads, input, conv, samplings, geometry);
  const auto run = [&](const cpu::TwoSidedGradient& gradient) {
    for_type(input.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      cpu::run<T>(gradient, geometry.view(grads, grads.const_data_ptr<T>()),
                  geometry.view(images, images.const_data_ptr<T>()));
    });
  };
  const auto [grad_s1, grad_s2] =
      cpu::parameter_gradients(factors.gradient(geometry.images, geometry.rows, geometry.columns),
                               tensors, output_mask, run);
  return {grad_input, grad_s1, grad_s2};
}

TORCH_LIBRARY_IMPL(sketchlayers, CPU, m) {
  m.impl("sk_conv2d_factored", TORCH_FN(ConvCall::unpacked<sk_conv2d_factored_cpu>));
  m.impl("sk_conv2d_factored_backward",
         TORCH_FN(ConvBackwardCall::unpacked<sk_conv2d_factored_backward_cpu>));
}

}  // namespace
}  // namespace sketchlayers
