// The dense weight on CUDA and its adjoint, from packed signs without copies of them in floats.
#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "composite/composed.h"
#include "cuda/kernel_checks.h"
#include "cuda/launches.h"
#include "ops/checks.h"

namespace sketchlayers {
namespace {

using cuda::kLargestGrid;
using cuda::SignRows;
using cuda::WeightSizes;
using cuda::WeightView;

constexpr int64_t kMostBatches = 65535;
// Multiply-adds beyond which signs in floats cost little beside the GEMM that takes them.
constexpr double kMostProducts = 4294967296.0;

template <typename Problem>
void launch(const Problem& problem, const at::Tensor& like) {
  const int64_t multiprocessors = at::cuda::getCurrentDeviceProperties()->multiProcessorCount;
  cuda::Split split = cuda::split_depth(problem, 2 * multiprocessors);
  const int64_t elements = problem.batches * problem.rows * problem.columns;
  at::Tensor partial;
  if (split.parts > 1) {
    partial = at::empty({split.parts, elements}, like.options().dtype(at::kFloat));
    split.partial = partial.mutable_data_ptr<float>();
  }
  C10_CUDA_CHECK(cuda::launch_decoded_gemm(problem, split, at::cuda::getCurrentCUDAStream()));
}

WeightSizes weight_sizes(const Sketch& sketch) {
  return {sketch.groups,      sketch.rank,        sketch.out_channels,
          sketch.in_channels, sketch.positions(), sketch.mixes_space()};
}

bool takes(at::ScalarType type, const Sketch& sketch, cuda::KernelFamilyIndex family) {
  const double products = static_cast<double>(sketch.groups) *
                          static_cast<double>(sketch.out_channels) *
                          static_cast<double>(sketch.inputs()) *
                          static_cast<double>(sketch.rank + sketch.second_rank());
  // A grid holds every element, so that no count of blocks can overflow.
  const double elements = static_cast<double>(sketch.groups) *
                          static_cast<double>(std::max(sketch.out_channels, sketch.rank)) *
                          static_cast<double>(std::max(sketch.inputs(), sketch.second_rank()));
  // Each batch of products may be split over at most twice the multiprocessors' number of blocks.
  const int64_t batches = sketch.groups * sketch.positions();
  return type != at::kDouble && sketch.blocks == 1 && products <= kMostProducts &&
         elements <= static_cast<double>(kLargestGrid) && batches < kMostBatches / 2 &&
         cuda::uses_kernel(family, type);
}

SignRows sign_rows(const at::Tensor& packed) {  // contiguous
  return {packed.const_data_ptr<int32_t>(), packed.size(1), packed.size(2)};
}

at::Tensor contiguous_or_undefined(const std::optional<at::Tensor>& tensor) {
  return tensor ? tensor->contiguous() : at::Tensor();
}
SignRows sign_rows_or_null(const at::Tensor& packed) {
  return packed.defined() ? sign_rows(packed) : SignRows{nullptr, 0, 0};
}

template <typename T>
WeightView<T> weight_view(T* data, const at::Tensor& weight, const Sketch& sketch) {
  if (sketch.is_linear) return {data, weight.stride(0), weight.stride(1), 0, 1};
  // Contiguous or channels_last: rows of positions follow each other.
  return {data, weight.stride(0), weight.stride(1), weight.stride(3), sketch.positions()};
}

template <typename T>
at::Tensor form_weight(const WeightCall& call, const Sketch& sketch) {
  const auto& [s1, s2, u1, u2] = call.tensors;
  const at::Tensor first = s1.contiguous();
  const at::Tensor second = s2.contiguous();
  const at::Tensor first_signs = u1.contiguous();
  const at::Tensor second_signs = u2.contiguous();
  const at::Tensor frame = contiguous_or_undefined(call.arguments.frame);
  at::Tensor weight =
      at::empty(sketch.weight_sizes(), s1.options(),
                sketch.is_linear ? at::MemoryFormat::Contiguous : common_memory_format(s1, s1));
  cuda::WeightProblem<T> problem{};
  problem.set_sizes(weight_sizes(sketch));
  problem.s1 = first.const_data_ptr<T>();
  problem.s2 = second.const_data_ptr<T>();
  problem.u1 = sign_rows(first_signs);
  problem.u2 = sign_rows(second_signs);
  problem.frame = sign_rows_or_null(frame);
  problem.u1_scale = static_cast<float>(sketch.u1_scale);
  problem.u2_scale = static_cast<float>(sketch.u2_scale);
  problem.scale = static_cast<float>(sketch.scale);
  problem.weight = weight_view(weight.mutable_data_ptr<T>(), weight, sketch);
  launch(problem, weight);
  return weight;
}

at::Tensor sk_weight_cuda(const WeightCall& call) {
  const Sketch sketch = check_call(call);
  const at::Tensor& s1 = call.tensors.s1;
  const c10::cuda::CUDAGuard guard(s1.device());
  if (!takes(s1.scalar_type(), sketch, cuda::kWeight)) return sk_weight_composed(call);
  return for_type(s1.scalar_type(),
                  [&](auto zero) { return form_weight<decltype(zero)>(call, sketch); });
}

template <typename T>
WeightGradients pull_back(const WeightBackwardCall& call, const Sketch& sketch) {
  const at::Tensor& grad = call.grad;
  const at::Tensor dense = in_format(grad, common_memory_format(grad, grad));
  const at::Tensor first_signs = call.u1.contiguous();
  const at::Tensor second_signs = call.u2.contiguous();
  const at::Tensor frame = contiguous_or_undefined(call.arguments.frame);
  const at::Tensor grad_s1 = at::empty(sketch.s1_sizes(), grad.options());
  const at::Tensor grad_s2 = at::empty(sketch.s2_sizes(), grad.options());
  const cuda::WeightGradient<T> gradient{weight_view(dense.const_data_ptr<T>(), dense, sketch),
                                         sign_rows_or_null(frame)};
  cuda::FirstGradientProblem<T> first{};
  first.set_sizes(weight_sizes(sketch));
  first.gradient = gradient;
  first.u1 = sign_rows(first_signs);
  first.scale = static_cast<float>(sketch.scale * sketch.u1_scale);
  first.grad_s1 = grad_s1.mutable_data_ptr<T>();
  launch(first, grad);
  cuda::SecondGradientProblem<T> second{};
  second.set_sizes(weight_sizes(sketch));
  second.gradient = gradient;
  second.u2 = sign_rows(second_signs);
  second.scale = static_cast<float>(sketch.scale * sketch.u2_scale);
  second.grad_s2 = grad_s2.mutable_data_ptr<T>();
  launch(second, grad);
  return {grad_s1, grad_s2};
}

WeightGradients sk_weight_backward_cuda(const WeightBackwardCall& call) {
  const Sketch sketch = check_call(call);
  const c10::cuda::CUDAGuard guard(call.grad.device());
  if (!takes(call.grad.scalar_type(), sketch, cuda::kWeightBackward)) {
    return sk_weight_composed_backward(call);
  }
  return for_type(call.grad.scalar_type(),
                  [&](auto zero) { return pull_back<decltype(zero)>(call, sketch); });
}

TORCH_LIBRARY_IMPL(sketchlayers, CUDA, m) {
  m.impl("sk_weight", TORCH_FN(WeightCall::unpacked<sk_weight_cuda>));
  m.impl("sk_weight_backward", TORCH_FN(WeightBackwardCall::unpacked<sk_weight_backward_cuda>));
}

}  // namespace
}  // namespace sketchlayers
