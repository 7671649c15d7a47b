// The factored convolution on CUDA. Channel mixing and 1x1 kernels take the tensor cores; what
// those kernels don't take goes the composed way.
#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "composite/composed.h"
#include "cuda/channel_operands.h"
#include "cuda/channel_plan.h"
#include "cuda/kernel_checks.h"
#include "cuda/launches.h"
#include "ops/checks.h"

namespace sketchlayers {
namespace {

using cuda::axis;
using cuda::ChannelConvParams;
using cuda::ChannelFactorsParams;
using cuda::ChannelFactorsSizes;
using cuda::kLargestGrid;
using cuda::s1_view;
using cuda::s2_view;
using cuda::signs_view;

bool takes_type(at::ScalarType type) {
  if (type == at::kBFloat16 || type == at::kHalf) return true;
  return type == at::kFloat && at::globalContext().allowTF32CuDNN(at::Float32Op::CONV);
}

bool takes(const at::Tensor& input, at::IntArrayRef output_sizes, const Sketch& sketch,
           cuda::KernelFamilyIndex family) {
  return takes_type(input.scalar_type()) && cuda::takes_layer(input, output_sizes, sketch) &&
         cuda::uses_kernel(family, input.scalar_type());
}

// One convolution for the kernel, forward or the input's gradient; without its axes and its tile.
ChannelConvParams conv_params(const at::Tensor& input, const at::Tensor& output,
                              const ChannelFactorsParams& factors, const Sketch& sketch) {
  ChannelConvParams params{};
  params.batch = input.size(0);
  params.input = cuda::images_view(input, factors.channels);
  params.output = output.mutable_data_ptr();
  std::copy_n(output.strides().begin(), 4, params.output_strides);
  params.outputs = factors.outputs;
  params.rank = factors.rank;
  params.inner_scale = static_cast<float>(sketch.u1_scale);
  params.outer_scale = static_cast<float>(sketch.scale);
  params.output_units = cuda::moves_units(output, params.outputs);
  return params;
}

// The tile for as many blocks as the registers hold, else for one.
template <typename Traits>
std::optional<cuda::PixelTile> choose_tile(const ChannelConvParams& params, int64_t groups) {
  const cudaDeviceProp* device = at::cuda::getCurrentDeviceProperties();
  const int64_t most = static_cast<int64_t>(device->sharedMemPerBlockOptin);
  const int64_t reserved = static_cast<int64_t>(device->reservedSharedMemPerBlock);
  const int64_t shared =
      static_cast<int64_t>(device->sharedMemPerMultiprocessor) / Traits::kBlocks - reserved;
  for (const int64_t limit : {std::min(shared, most), most}) {
    const auto tile =
        cuda::TileSearch<Traits>(params.vertical, params.horizontal, params.batch, groups,
                                 device->multiProcessorCount * Traits::kBlocks,
                                 cuda::halo_for<Traits>(limit))
            .best();
    if (tile) return tile;
  }
  return std::nullopt;
}

// Lays the factors out for the kernel; what is returned keeps the memory alive.
template <typename Traits>
at::Tensor pack_factors(ChannelConvParams& params, ChannelFactorsParams factors,
                        const at::Tensor& like) {
  const int64_t groups = factors.groups;
  const ChannelFactorsSizes sizes = cuda::ChannelFactors<Traits>::sizes(
      factors.kernel_h * factors.kernel_w, factors.channels, factors.outputs);
  at::Tensor packed = at::empty({sizes.bytes(groups)}, like.options().dtype(at::kByte));
  const auto first = reinterpret_cast<cuda::Unit*>(packed.mutable_data_ptr<uint8_t>());
  const auto second = first + groups * sizes.first_units;
  const auto first_signs = reinterpret_cast<uint32_t*>(second + groups * sizes.second_units);
  factors.packed = params.factors = {first, second, first_signs,
                                     first_signs + groups * sizes.first_words, sizes};
  C10_CUDA_CHECK(cuda::launch_channel_factors<Traits>(factors, sizes.items(),
                                                      at::cuda::getCurrentCUDAStream()));
  return packed;
}

// False, with nothing done, where no tile fits.
template <typename Traits>
bool launch(ChannelConvParams params, const ChannelFactorsParams& factors,
            const at::Tensor& input) {
  const int64_t groups = factors.groups;
  const auto tile = choose_tile<Traits>(params, groups);
  if (!tile) return false;
  params.tile = *tile;
  const int64_t blocks = params.tiles();
  if (blocks > kLargestGrid) return false;
  const at::Tensor packed = pack_factors<Traits>(params, factors, input);
  const int shared = static_cast<int>(cuda::shared_bytes<Traits>(params.halo()));
  const dim3 grid(static_cast<unsigned int>(blocks), static_cast<unsigned int>(groups));
  C10_CUDA_CHECK(
      cuda::launch_channel_conv<Traits>(params, grid, shared, at::cuda::getCurrentCUDAStream()));
  return true;
}

bool launch_for_type(const ChannelConvParams& params, const ChannelFactorsParams& factors,
                     const at::Tensor& input) {
  return for_type(input.scalar_type(), [&](auto zero) {
    return cuda::for_rank_pairs(factors.rank, [&](auto pairs) {
      return launch<typename cuda::ChannelConvChoice<decltype(zero), pairs>::Traits>(
          params, factors, input);
    });
  });
}

// The parts of the factors that do not depend on their roles.
ChannelFactorsParams factor_sizes(const Sketch& sketch) {
  ChannelFactorsParams factors{};
  factors.kernel_h = static_cast<int>(sketch.kernel_h);
  factors.kernel_w = static_cast<int>(sketch.kernel_w);
  factors.rank = static_cast<int>(sketch.rank);
  factors.groups = static_cast<int>(sketch.groups);
  return factors;
}

// An undefined tensor where the kernels don't take the layer.
at::Tensor try_forward(const ConvCall& call, at::IntArrayRef output_sizes, const Sketch& sketch) {
  const auto& [input, tensors, bias, conv, arguments] = call;
  if (!takes(input, output_sizes, sketch, cuda::kChannelConv)) return {};
  const at::Tensor output =
      at::empty(output_sizes, input.options(), common_memory_format(input, tensors.s1));
  const at::Tensor addend = bias ? bias->contiguous() : at::Tensor();
  const at::Tensor u1 = tensors.u1.contiguous(), u2 = tensors.u2.contiguous();
  ChannelFactorsParams factors = factor_sizes(sketch);
  factors.first = s1_view(tensors.s1, sketch);
  factors.second = s2_view(tensors.s2, sketch);
  factors.first_signs = signs_view(u2);
  factors.second_signs = signs_view(u1);
  factors.channels = static_cast<int>(sketch.in_channels);
  factors.outputs = static_cast<int>(sketch.out_channels);
  ChannelConvParams params = conv_params(input, output, factors, sketch);
  params.vertical = axis(input, output, 2, sketch.kernel_h, conv);
  params.horizontal = axis(input, output, 3, sketch.kernel_w, conv);
  if (bias) params.bias = addend.const_data_ptr();
  return launch_for_type(params, factors, input) ? output : at::Tensor();
}

// The adjoint applied to grad, which for stride 1 is a layer of the same kind; an undefined tensor
// where the kernels don't take it.
at::Tensor try_input_gradient(const ConvBackwardCall& call, const Sketch& sketch) {
  const auto& [grad, input, tensors, output_mask, conv, arguments] = call;
  const bool steps_by_one = conv.stride[0] == 1 && conv.stride[1] == 1;
  if (!steps_by_one || !takes(input, grad.sizes(), sketch, cuda::kChannelConvInputGradient)) {
    return {};
  }
  const at::Tensor grad_input =
      at::empty(input.sizes(), input.options(), common_memory_format(input, input));
  const at::Tensor u1 = tensors.u1.contiguous(), u2 = tensors.u2.contiguous();
  const int64_t bytes = tensors.s1.element_size();
  ChannelFactorsParams factors = factor_sizes(sketch);
  factors.first =
      cuda::flipped(s2_view(tensors.s2, sketch), factors.kernel_h, factors.kernel_w, bytes);
  factors.second =
      cuda::flipped(s1_view(tensors.s1, sketch), factors.kernel_h, factors.kernel_w, bytes);
  factors.channels = static_cast<int>(sketch.out_channels);
  factors.outputs = static_cast<int>(sketch.in_channels);
  factors.first_signs = signs_view(u1);
  factors.second_signs = signs_view(u2);
  ChannelConvParams params = conv_params(grad, grad_input, factors, sketch);
  params.vertical = cuda::adjoint_axis(axis(grad_input, grad, 2, sketch.kernel_h, conv));
  params.horizontal = cuda::adjoint_axis(axis(grad_input, grad, 3, sketch.kernel_w, conv));
  return launch_for_type(params, factors, grad) ? grad_input : at::Tensor();
}

at::Tensor sk_conv2d_factored_cuda(const ConvCall& call) {
  const auto [sketch, sizes] = check_call(call);
  const c10::cuda::CUDAGuard guard(call.input.device());
  const at::Tensor output = try_forward(call, C10_AS_INTARRAYREF_SLOW(sizes), sketch);
  return output.defined() ? output : sk_conv2d_composed(call);
}

LayerGradients sk_conv2d_factored_backward_cuda(const ConvBackwardCall& call) {
  const Sketch sketch = check_call(call).sketch;
  const c10::cuda::CUDAGuard guard(call.input.device());
  ConvBackwardCall rest = call;  // what the kernels don't take
  at::Tensor grad_input;
  if (call.output_mask[0]) grad_input = try_input_gradient(call, sketch);
  if (grad_input.defined()) rest.output_mask[0] = false;
  const auto [grad_s1, grad_s2] = cuda::try_factor_gradients(call, sketch);
  if (grad_s1.defined()) rest.output_mask[1] = false;
  if (grad_s2.defined()) rest.output_mask[2] = false;
  auto gradients = sk_conv2d_composed_backward(rest);
  if (grad_input.defined()) std::get<0>(gradients) = grad_input;
  if (grad_s1.defined()) std::get<1>(gradients) = grad_s1;
  if (grad_s2.defined()) std::get<2>(gradients) = grad_s2;
  return gradients;
}

TORCH_LIBRARY_IMPL(sketchlayers, CUDA, m) {
  m.impl("sk_conv2d_factored", TORCH_FN(ConvCall::unpacked<sk_conv2d_factored_cuda>));
  m.impl("sk_conv2d_factored_backward",
         TORCH_FN(ConvBackwardCall::unpacked<sk_conv2d_factored_backward_cuda>));
}

}  // namespace
}  // namespace sketchlayers
