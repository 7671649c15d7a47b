// sk_conv2d_factored on the CPU, by our own kernels but for float64 and rare geometries.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "composite/composed.h"
#include "cpu/allocate.h"
#include "cpu/factors.h"

namespace sketchlayers {
namespace {

// Images whose rows follow each other without gaps, channels together or apart.
at::Tensor dense_images(const at::Tensor& images) {
  return in_format(images, images.suggest_memory_format());
}

class Geometry {
 public:
  Geometry(const at::Tensor& input, at::IntArrayRef output_sizes, const Sketch& sketch,
           const ConvArguments& conv)
      : images(input.size(0)) {
    const auto axis = [&](int64_t i, int64_t kernel) {
      const auto k = static_cast<size_t>(i);
      return ConvAxis{input.size(2 + i), output_sizes[2 + k], kernel,
                      conv.stride[k],    conv.padding[k],     conv.dilation[k]};
    };
    rows = axis(0, sketch.kernel_h);
    columns = axis(1, sketch.kernel_w);
    pointwise = sketch.positions() == 1 && rows.stride == 1 && columns.stride == 1 &&
                rows.padding == 0 && columns.padding == 0;
    if (!pointwise) return;
    const int64_t pixels = rows.input * columns.input;
    rows = cpu::identity_axis(pixels);
    columns = cpu::identity_axis(1);
  }

  // All images as the rows of one.
  void merge_images() {
    rows.input = rows.output = rows.output * images;
    images = 1;
  }

  // The images as the kernels take them.
  template <typename T>
  cpu::ImageView<T> view(const at::Tensor& tensor, T* data) const {
    const cpu::ImageView<T> view{data, tensor.stride(0), tensor.stride(1), tensor.stride(2),
                                 tensor.stride(3)};
    return pointwise ? view.in_one_column() : view;
  }

  int64_t images;
  ConvAxis rows;
  ConvAxis columns;
  bool pointwise;
};

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
          const Geometry& geometry) {
  constexpr int64_t kWidest = 1 << 14;
  if (geometry.columns.input > kWidest || geometry.columns.output > kWidest) return false;
  for (const cpu::Sampling& sampling : samplings) {
    if (!cpu::fits(conv, sampling)) return false;
  }
  return true;
}

bool together(const at::Tensor& images) {
  return images.stride(1) == 1 && images.is_contiguous(at::MemoryFormat::ChannelsLast);
}

template <typename T>
void run(const cpu::TwoSidedConv& conv, const std::vector<cpu::Sampling>& samplings,
         const Geometry& geometry, const at::Tensor& input, const at::Tensor& output) {
  const auto source = geometry.view(input, input.const_data_ptr<T>());
  const auto target = geometry.view(output, output.mutable_data_ptr<T>());
  for (const cpu::Sampling& sampling : samplings) cpu::run<T>(conv, sampling, source, target);
}

at::Tensor sk_conv2d_factored_cpu(const ConvCall& call) {
  const auto& [input, tensors, bias, arguments, sketch_arguments] = call;
  const auto [sketch, symbolic_sizes] = check_call(call);
  if (!takes(input)) return sk_conv2d_composed(call);
  const at::IntArrayRef sizes = C10_AS_INTARRAYREF_SLOW(symbolic_sizes);
  Geometry geometry(input, sizes, sketch, arguments);
  const at::Tensor images = dense_images(input);
  const auto format = common_memory_format(input, tensors.s1);
  if (geometry.pointwise && together(images) && format == at::MemoryFormat::ChannelsLast) {
    geometry.merge_images();
  }
  const cpu::Factors factors(tensors, sketch);
  const at::Tensor offset = bias ? bias->to(at::kFloat).contiguous() : at::Tensor();
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
                          const std::vector<cpu::Sampling>& samplings, const Geometry& geometry) {
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
  const Geometry geometry(input, grad.sizes(), sketch, arguments);
  const cpu::Factors factors(tensors, sketch);
  const cpu::TwoSidedConv conv = factors.adjoint(geometry.images);
  const auto samplings = cpu::adjoint_samplings(geometry.rows, geometry.columns);
  if (!fits(conv, samplings, geometry)) return sk_conv2d_composed_backward(call);

  const at::Tensor images = dense_images(input);
  const at::Tensor grads = dense_images(grad);
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
