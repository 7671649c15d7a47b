// sk_linear_factored on the CPU. A few rows: S1 and S2 are read once and signs never leave their
// bits. More: the 1x1 convolution whose pixels are the rows.
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "composite/composed.h"
#include "cpu/allocate.h"
#include "cpu/factors.h"
#include "cpu/panel_linear.h"
#include "cpu/tasks.h"

namespace sketchlayers {
namespace {

constexpr int64_t kFeatureRows = 16;  // of S1, for one task
constexpr int64_t kOutputs = 64;      // for one task
constexpr int64_t kSmall = 1 << 19;   // multiply-adds with S1 and S2: some ten microseconds

template <typename T>
cpu::ImageView<T> rows_as_pixels(T* data, int64_t columns) {
  return {data, 0, 1, columns, columns};
}

cpu::Sampling pixel_by_pixel(int64_t rows) {
  return cpu::forward_sampling(cpu::identity_axis(rows), cpu::identity_axis(1));
}

// Rows padded with zeros to whole steps; the tensor itself if it is so already.
at::Tensor padded(const at::Tensor& rows) {
  const int64_t columns = cpu::whole_steps(rows.size(1));
  if (columns == rows.size(1)) return rows;
  at::Tensor result = at::zeros({rows.size(0), columns}, rows.options());
  result.narrow(1, 0, rows.size(1)).copy_(rows);
  return result;
}

void few_rows(const at::Tensor& x, const cpu::Factors& factors, const Sketch& sketch,
              const float* bias, const at::Tensor& y) {
  const cpu::VectorKernels& kernels = cpu::vector_kernels();
  const int64_t batch = x.size(0);
  const at::Tensor input = padded(x);
  const int64_t row = cpu::whole_steps(sketch.rank);
  std::vector<float> features(static_cast<size_t>(2 * batch * row), 0.0f);
  float* filtered = features.data();             // S1 x
  float* mixed = features.data() + batch * row;  // B x
  const cpu::Signs& inputs = factors.input_signs();
  const cpu::Signs& outputs = factors.output_signs();
  const bool small = batch * sketch.rank * (sketch.in_channels + sketch.out_channels) < kSmall;
  const auto make_features = [&](int64_t i) {
    const int64_t first = i * kFeatureRows;
    kernels.sketch_vectors(
        factors.s1() + first * sketch.in_channels, sketch.in_channels, inputs.row(0, first),
        inputs.words, std::min(kFeatureRows, sketch.rank - first), sketch.in_channels,
        input.const_data_ptr<float>(), input.size(1), batch, filtered + first, mixed + first, row);
  };
  cpu::run_tasks((sketch.rank + kFeatureRows - 1) / kFeatureRows, make_features, small);
  for (int64_t i = 0; i < batch * row; ++i) {
    filtered[i] *= outputs.magnitude;
    mixed[i] *= inputs.magnitude;
  }
  float* target = y.mutable_data_ptr<float>();
  const auto combine = [&](int64_t i) {
    const int64_t first = i * kOutputs;
    kernels.combine_vectors(factors.s2(), sketch.rank, outputs.row(0, 0), outputs.words, first,
                            std::min(kOutputs, sketch.out_channels - first), sketch.rank, mixed,
                            filtered, row, batch, bias, target, sketch.out_channels);
  };
  cpu::run_tasks((sketch.out_channels + kOutputs - 1) / kOutputs, combine, small);
}

template <typename T>
void run(const cpu::TwoSidedConv& layer, const at::Tensor& x, const at::Tensor& y) {
  const cpu::Sampling sampling = pixel_by_pixel(x.size(0));
  cpu::run<T>(layer, sampling, rows_as_pixels(x.const_data_ptr<T>(), x.size(1)),
              rows_as_pixels(y.mutable_data_ptr<T>(), y.size(1)));
}

at::Tensor sk_linear_factored_cpu(const LinearCall& call) {
  const auto& [input, tensors, bias, arguments] = call;
  const Sketch sketch = check_call(call);
  if (!computes_in_float(input.scalar_type()) || input.numel() == 0) {
    return sk_linear_composed(call);
  }
  const at::Tensor x = input.reshape({-1, sketch.in_channels}).contiguous();
  const at::Tensor y = cpu::empty_result({x.size(0), sketch.out_channels}, x.options(),
                                         at::MemoryFormat::Contiguous);
  const at::Tensor offset = bias ? bias->to(at::kFloat).contiguous() : at::Tensor();
  const float* bias_data = bias ? offset.const_data_ptr<float>() : nullptr;
  auto sizes = input.sizes().vec();
  sizes.back() = sketch.out_channels;
  if (cpu::takes_panels(x.scalar_type(), sketch)) {
    cpu::linear_by_panels(x, tensors, sketch, bias_data, y);
    return y.view(sizes);
  }
  const cpu::Factors factors(tensors, sketch);
  if (x.size(0) <= cpu::kFewVectors && x.scalar_type() == at::kFloat && sketch.blocks == 1) {
    few_rows(x, factors, sketch, bias_data, y);
  } else {
    for_type(x.scalar_type(),
             [&](auto zero) { run<decltype(zero)>(factors.forward(1, bias_data), x, y); });
  }
  return y.view(sizes);
}

LayerGradients sk_linear_factored_backward_cpu(const LinearBackwardCall& call) {
  const auto& [grad, input, tensors, output_mask, arguments] = call;
  const Sketch sketch = check_call(call);
  if (!computes_in_float(input.scalar_type()) || input.numel() == 0) {
    return sk_linear_composed_backward(call);
  }
  const at::Tensor x = input.reshape({-1, sketch.in_channels}).contiguous();
  const at::Tensor dy = grad.reshape({-1, sketch.out_channels}).contiguous();
  if (cpu::takes_panels(x.scalar_type(), sketch)) {
    auto [grad_input, grad_s1, grad_s2] =
        cpu::linear_by_panels_backward(dy, x, tensors, sketch, output_mask);
    if (output_mask[0]) grad_input = grad_input.view(input.sizes());
    return {grad_input, grad_s1, grad_s2};
  }
  const cpu::Factors factors(tensors, sketch);
  at::Tensor grad_input = input.new_empty({0});
  if (output_mask[0]) {
    grad_input = cpu::empty_result(x.sizes(), x.options(), at::MemoryFormat::Contiguous);
    for_type(x.scalar_type(),
             [&](auto zero) { run<decltype(zero)>(factors.adjoint(1), dy, grad_input); });
    grad_input = grad_input.view(input.sizes());
  }
  const auto sum = [&](const cpu::TwoSidedGradient& gradient) {
    for_type(x.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      cpu::run<T>(gradient, rows_as_pixels(dy.const_data_ptr<T>(), dy.size(1)),
                  rows_as_pixels(x.const_data_ptr<T>(), x.size(1)));
    });
  };
  const auto [grad_s1, grad_s2] = cpu::parameter_gradients(
      factors.gradient(1, cpu::identity_axis(x.size(0)), cpu::identity_axis(1)), tensors,
      output_mask, sum);
  return {grad_input, grad_s1, grad_s2};
}

TORCH_LIBRARY_IMPL(sketchlayers, CPU, m) {
  m.impl("sk_linear_factored", TORCH_FN(LinearCall::unpacked<sk_linear_factored_cpu>));
  m.impl("sk_linear_factored_backward",
         TORCH_FN(LinearBackwardCall::unpacked<sk_linear_factored_backward_cpu>));
}

}  // namespace
}  // namespace sketchlayers
