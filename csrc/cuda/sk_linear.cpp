// The factored fully connected layer on CUDA. A few vectors take kernels that read each factor
// once; many take GEMMs.
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
using cuda::NarrowLinearParams;

constexpr int64_t kLargestRank = int64_t{1} << 24;

// False, with nothing done, where a block's part of S2 is too large for shared memory.
template <typename T, int kVectors>
bool launch_both(const NarrowLinearParams& params) {
  using Traits = cuda::NarrowLinearTraits<T, kVectors>;
  const int64_t shared = cuda::NarrowOuter<Traits>::shared_bytes(params.rank);
  const int64_t most =
      static_cast<int64_t>(at::cuda::getCurrentDeviceProperties()->sharedMemPerBlockOptin);
  const int64_t blocks = (params.outputs + Traits::kOutputs - 1) / Traits::kOutputs;
  if (shared > most || blocks > kLargestGrid) return false;
  const auto stream = at::cuda::getCurrentCUDAStream();
  C10_CUDA_CHECK(cuda::launch_narrow_inner<Traits>(params, stream));
  C10_CUDA_CHECK(cuda::launch_narrow_outer<Traits>(params, stream));
  return true;
}

template <typename T>
bool launch_for_vectors(const NarrowLinearParams& params) {
  if (params.vectors > 4 && launch_both<T, 8>(params)) return true;
  if (params.vectors > 2 && launch_both<T, 4>(params)) return true;
  if (params.vectors > 1 && launch_both<T, 2>(params)) return true;
  return launch_both<T, 1>(params);
}

bool takes(const at::Tensor& input, const Sketch& sketch) {
  const int64_t vectors = input.numel() / sketch.in_channels;
  return computes_in_float(input.scalar_type()) && vectors > 0 &&
         vectors <= cuda::kMostNarrowVectors && sketch.rank < kLargestRank && sketch.blocks == 1 &&
         at::cuda::getCurrentDeviceProperties()->major >= 8 &&
         cuda::uses_kernel(cuda::kNarrowLinear, input.scalar_type());
}

bool aligned(const at::Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % cuda::kUnitBytes == 0;
}

// An undefined tensor where the kernels don't take the layer.
at::Tensor try_narrow(const LinearCall& call, const Sketch& sketch) {
  const auto& [input, tensors, bias, arguments] = call;
  const auto& [s1, s2, u1, u2] = tensors;
  if (!takes(input, sketch)) return {};
  const at::Tensor x = input.contiguous();
  const at::Tensor first = s1.contiguous();
  const at::Tensor second = s2.contiguous();
  const at::Tensor first_signs = u2.contiguous();
  const at::Tensor second_signs = u1.contiguous();
  const at::Tensor addend = bias ? bias->contiguous() : at::Tensor();
  const int64_t vectors = input.numel() / sketch.in_channels;
  const at::Tensor inner = at::empty({vectors, 2, sketch.rank}, input.options().dtype(at::kFloat));
  auto sizes = input.sizes().vec();
  sizes.back() = sketch.out_channels;
  at::Tensor output = at::empty(sizes, input.options());

  NarrowLinearParams params{};
  params.input = x.const_data_ptr();
  params.s1 = first.const_data_ptr();
  params.s2 = second.const_data_ptr();
  params.u1 = second_signs.const_data_ptr<int32_t>();
  params.u2 = first_signs.const_data_ptr<int32_t>();
  params.bias = bias ? addend.const_data_ptr() : nullptr;
  params.inner = inner.mutable_data_ptr<float>();
  params.output = output.mutable_data_ptr();
  params.channels = sketch.in_channels;
  params.outputs = sketch.out_channels;
  params.channel_words = first_signs.size(2);
  params.output_words = second_signs.size(2);
  params.vectors = static_cast<int>(vectors);
  params.rank = static_cast<int>(sketch.rank);
  params.inner_scale = static_cast<float>(sketch.u1_scale);  // that of U2 is the same
  params.outer_scale = static_cast<float>(sketch.scale);
  params.row_units = sketch.in_channels * input.element_size() % cuda::kUnitBytes == 0 &&
                     aligned(x) && aligned(first);
  params.s2_units = aligned(second);
  const bool done = for_type(input.scalar_type(),
                             [&](auto zero) { return launch_for_vectors<decltype(zero)>(params); });
  return done ? output : at::Tensor();
}

at::Tensor sk_linear_factored_cuda(const LinearCall& call) {
  const Sketch sketch = check_call(call);
  const c10::cuda::CUDAGuard guard(call.input.device());
  const at::Tensor output = try_narrow(call, sketch);
  return output.defined() ? output : sk_linear_composed(call);
}

TORCH_LIBRARY_IMPL(sketchlayers, CUDA, m) {
  m.impl("sk_linear_factored", TORCH_FN(LinearCall::unpacked<sk_linear_factored_cuda>));
}

}  // namespace
}  // namespace sketchlayers
