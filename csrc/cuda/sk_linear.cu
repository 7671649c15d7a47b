// The factored fully connected layer on CUDA. A few vectors take kernels that read each factor
// once; many take GEMMs.
#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "composite/sk_linear.h"
#include "cuda/narrow_linear.h"

namespace sketchlayers {
namespace cuda {

extern __shared__ __align__(16) unsigned char narrow_shared[];

template <typename Body, typename Traits>
__global__ void __launch_bounds__(Traits::kThreads)
    narrow_linear_kernel(const __grid_constant__ NarrowLinearParams params) {
  DeviceBlock<typename Body::Warp> block(narrow_shared);
  Body(params, narrow_shared, blockIdx.x, static_cast<int>(blockIdx.y)).run(block);
}

}  // namespace cuda

namespace {

using cuda::NarrowLinearParams;

constexpr int64_t kLargestGrid = (int64_t{1} << 31) - 1;
constexpr int64_t kLargestRank = int64_t{1} << 24;

template <typename Body, typename Traits>
void launch(const NarrowLinearParams& params, int64_t blocks, int64_t shared) {
  const auto kernel = cuda::narrow_linear_kernel<Body, Traits>;
  C10_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(shared)));
  const dim3 grid(
      static_cast<unsigned int>(blocks),
      static_cast<unsigned int>((params.vectors + Traits::kVectors - 1) / Traits::kVectors));
  kernel<<<grid, Traits::kThreads, shared, at::cuda::getCurrentCUDAStream()>>>(params);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

// False, with nothing done, where a block's part of S2 is too large for shared memory.
template <typename T, int kVectors>
bool launch_both(const NarrowLinearParams& params) {
  using Traits = cuda::NarrowLinearTraits<T, kVectors>;
  using Inner = cuda::NarrowInner<Traits>;
  using Outer = cuda::NarrowOuter<Traits>;
  const int64_t shared = Outer::shared_bytes(params.rank);
  const int64_t most =
      static_cast<int64_t>(at::cuda::getCurrentDeviceProperties()->sharedMemPerBlockOptin);
  const int64_t blocks = (params.outputs + Traits::kOutputs - 1) / Traits::kOutputs;
  if (shared > most || blocks > kLargestGrid) return false;
  launch<Inner, Traits>(params, (params.rank + Traits::kRows - 1) / Traits::kRows,
                        Inner::shared_bytes());
  launch<Outer, Traits>(params, blocks, shared);
  return true;
}

template <typename T>
bool launch_for_vectors(const NarrowLinearParams& params) {
  if (params.vectors > 4 && launch_both<T, 8>(params)) return true;
  if (params.vectors > 2 && launch_both<T, 4>(params)) return true;
  if (params.vectors > 1 && launch_both<T, 2>(params)) return true;
  return launch_both<T, 1>(params);
}

bool launch_for_type(const NarrowLinearParams& params, at::ScalarType type) {
  switch (type) {
    case at::kBFloat16:
      return launch_for_vectors<c10::BFloat16>(params);
    case at::kHalf:
      return launch_for_vectors<c10::Half>(params);
    default:
      return launch_for_vectors<float>(params);
  }
}

bool takes(const at::Tensor& input, const Sketch& sketch) {
  const auto type = input.scalar_type();
  const int64_t vectors = input.numel() / sketch.in_channels;
  return (type == at::kFloat || type == at::kBFloat16 || type == at::kHalf) && vectors > 0 &&
         vectors <= cuda::kMostNarrowVectors && sketch.rank < kLargestRank && sketch.blocks == 1 &&
         at::cuda::getCurrentDeviceProperties()->major >= 8;
}

bool aligned(const at::Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % cuda::kUnitBytes == 0;
}

// An undefined tensor where the kernels don't take the layer.
at::Tensor try_narrow(const at::Tensor& input, const at::Tensor& s1, const at::Tensor& s2,
                      const at::Tensor& u1, const at::Tensor& u2,
                      const std::optional<at::Tensor>& bias, const Sketch& sketch) {
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
  return launch_for_type(params, input.scalar_type()) ? output : at::Tensor();
}

at::Tensor sk_linear_factored_cuda(const at::Tensor& input, const at::Tensor& s1,
                                   const at::Tensor& s2, const at::Tensor& u1, const at::Tensor& u2,
                                   const std::optional<at::Tensor>& bias, int64_t num_sketches,
                                   std::optional<double> scale) {
  const Sketch sketch =
      check_factored_linear(input, s1, s2, u1, u2, bias, {"spatial", num_sketches, scale});
  const c10::cuda::CUDAGuard guard(input.device());
  const at::Tensor output = try_narrow(input, s1, s2, u1, u2, bias, sketch);
  if (output.defined()) return output;
  return sk_linear_composed(input, s1, s2, u1, u2, bias, sketch);
}

TORCH_LIBRARY_IMPL(sketchlayers, CUDA, m) {
  m.impl("sk_linear_factored", TORCH_FN(sk_linear_factored_cuda));
}

}  // namespace
}  // namespace sketchlayers
