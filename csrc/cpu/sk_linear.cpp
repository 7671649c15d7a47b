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

// By kernels that take S1 and S2 as they are.
template <typename S>
void few_rows(const at::Tensor& x, const S* s1, const S* s2, const SketchTensors& tensors,
              const Sketch& sketch, cpu::VectorKernels::SketchVectors<S> sketch_vectors,
              cpu::VectorKernels::CombineVectors<S> combine_vectors, const float* bias, float* y) {
  const int64_t batch = x.size(0);
  const at::Tensor input = padded(x);
  const at::Tensor inputs = tensors.u2.contiguous();
  const at::Tensor outputs = tensors.u1.contiguous();
  const int32_t* input_signs = inputs.const_data_ptr<int32_t>();
  const int64_t input_words = inputs.size(-1);
  const int64_t row = cpu::whole_steps(sketch.rank);
  std::vector<float> features(static_cast<size_t>(2 * batch * row), 0.0f);
  float* filtered = features.data();             // S1 x
  float* mixed = features.data() + batch * row;  // B x
  const bool small = batch * sketch.rank * (sketch.in_channels + sketch.out_channels) < kSmall;
  const auto make_features = [&](int64_t i) {
    const int64_t first = i * kFeatureRows;
    sketch_vectors(
        s1 + first * sketch.in_channels, sketch.in_channels, input_signs + first * input_words,
        input_words, std::min(kFeatureRows, sketch.rank - first), sketch.in_channels,
        input.const_data_ptr<float>(), input.size(1), batch, filtered + first, mixed + first, row);
  };
  cpu::run_tasks((sketch.rank + kFeatureRows - 1) / kFeatureRows, make_features, small);
  const auto output_magnitude = static_cast<float>(sketch.u1_scale * sketch.scale);
  const auto input_magnitude = static_cast<float>(sketch.u2_scale * sketch.scale);
  for (int64_t i = 0; i < batch * row; ++i) {
    filtered[i] *= output_magnitude;
    mixed[i] *= input_magnitude;
  }
  const auto combine = [&](int64_t i) {
    const int64_t first = i * kOutputs;
    combine_vectors(s2, sketch.rank, outputs.const_data_ptr<int32_t>(), outputs.size(-1), first,
                    std::min(kOutputs, sketch.out_channels - first), sketch.rank, mixed, filtered,
                    row, batch, bias, y, sketch.out_channels);
  };
  cpu::run_tasks((sketch.out_channels + kOutputs - 1) / kOutputs, combine, small);
}

bool takes_few_rows(const at::Tensor& x, const Sketch& sketch) {
  return x.size(0) <= cpu::kFewVectors && sketch.blocks == 1 &&
         (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16);
}

void few_rows(const at::Tensor& x, const SketchTensors& tensors, const Sketch& sketch,
              const float* bias, const at::Tensor& y) {
  const cpu::VectorKernels& kernels = cpu::vector_kernels();
  const at::Tensor s1 = tensors.s1.contiguous();
  const at::Tensor s2 = tensors.s2.contiguous();
  if (x.scalar_type() == at::kFloat) {
    few_rows(x, s1.const_data_ptr<float>(), s2.const_data_ptr<float>(), tensors, sketch,
             kernels.sketch_vectors, kernels.combine_vectors, bias, y.mutable_data_ptr<float>());
    return;
  }
  const auto bits = [](const at::Tensor& numbers) {
    return reinterpret_cast<const uint16_t*>(numbers.const_data_ptr<c10::BFloat16>());
  };
  std::vector<float> sums(static_cast<size_t>(y.numel()));
  few_rows(x.to(at::kFloat), bits(s1), bits(s2), tensors, sketch, kernels.sketch_vectors_bfloat16,
           kernels.combine_vectors_bfloat16, bias, sums.data());
  kernels.to_bfloat16(sums.data(), y.numel(), 1, nullptr,
                      reinterpret_cast<uint16_t*>(y.mutable_data_ptr<c10::BFloat16>()));
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
  if (takes_few_rows(x, sketch)) {
    few_rows(x, tensors, sketch, bias_data, y);
  } else if (cpu::takes_panels(x.scalar_type(), sketch)) {
    cpu::linear_by_panels(x, tensors, sketch, bias_data, y);
  } else {
    const cpu::Factors factors(tensors, sketch);
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
