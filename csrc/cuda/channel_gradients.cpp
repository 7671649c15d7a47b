#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>

#include "cuda/channel_operands.h"
#include "cuda/channel_plan.h"
#include "cuda/kernel_checks.h"
#include "cuda/launches.h"

namespace sketchlayers::cuda {
namespace {

// What the launches share.
struct Operands {
  const at::Tensor& grad;
  const at::Tensor& input;
  at::Tensor u1;  // contiguous
  at::Tensor u2;
  const Sketch& sketch;
  ConvAxis vertical;
  ConvAxis horizontal;
};

PixelFeaturesParams features_params(const at::Tensor& images, const at::Tensor& features,
                                    const at::Tensor& signs, int64_t channels,
                                    const Sketch& sketch) {
  PixelFeaturesParams params{};
  params.images = images_view(images, channels);
  params.height = images.size(2);
  params.width = images.size(3);
  params.pixels = images.size(0) * images.size(2) * images.size(3);
  params.rank = static_cast<int>(sketch.rank);
  params.signs = signs_view(signs);
  params.features = features.mutable_data_ptr();
  params.scale = static_cast<float>(sketch.u1_scale);  // that of U2 is the same
  return params;
}

template <typename Traits>
at::Tensor empty_features(const at::Tensor& images, const Sketch& sketch) {
  return at::empty({sketch.groups, images.size(0), images.size(2), images.size(3), Traits::kRank},
                   images.options().memory_format(at::MemoryFormat::Contiguous));
}

// P for the gradient of s1 and V for that of s2, as far as they are wanted.
template <typename Traits>
void launch_features(const Operands& operands, const at::Tensor& of_grad,
                     const at::Tensor& of_input) {
  const Sketch& sketch = operands.sketch;
  PixelFeaturesParams params[2] = {};
  int64_t blocks[2] = {0, 0};
  const auto add = [&](int i, const at::Tensor& images, const at::Tensor& features,
                       const at::Tensor& signs, int64_t channels) {
    if (!features.defined()) return;
    params[i] = features_params(images, features, signs, channels, sketch);
    blocks[i] = ceil_divide(params[i].pixels, Traits::kPixels);
  };
  add(0, operands.grad, of_grad, operands.u1, sketch.out_channels);
  add(1, operands.input, of_input, operands.u2, sketch.in_channels);
  const dim3 grid(static_cast<unsigned int>(blocks[0] + blocks[1]),
                  static_cast<unsigned int>(sketch.groups));
  C10_CUDA_CHECK(launch_pixel_features<Traits>(params[0], params[1], blocks[0], grid,
                                               at::cuda::getCurrentCUDAStream()));
}

// How many blocks share the pixels: enough to fill the device, but so that each has a few tiles
// and that the parts stay small beside the images.
template <typename Traits>
int choose_splits(const ChannelGradientParams& params, int64_t other_blocks, int64_t bytes_of_split,
                  int64_t bytes_of_images) {
  constexpr int64_t kLeastTiles = 4;
  constexpr int64_t kFreeBytes = 2 << 20;
  const int64_t multiprocessors = at::cuda::getCurrentDeviceProperties()->multiProcessorCount;
  const int64_t fill = ceil_divide(2 * multiprocessors, other_blocks);
  const int64_t work = ceil_divide(params.tiles(), kLeastTiles);
  const int64_t memory =
      std::max(kFreeBytes, bytes_of_images / 16) / std::max<int64_t>(1, bytes_of_split);
  return static_cast<int>(std::max<int64_t>(1, std::min({fill, work, memory})));
}

template <typename T>
void launch_sum(const FactorGradient& part, const at::Tensor& gradient, const FactorView& view,
                const ChannelGradientParams& params, const Sketch& sketch) {
  GradientSumParams sum{};
  sum.partial = part.partial;
  sum.gradient = gradient.mutable_data_ptr();
  sum.view = view;
  sum.elements = gradient.numel();
  sum.splits = params.splits;
  sum.rank = params.rank;
  sum.channels = part.images.channels;
  sum.kernel_h = static_cast<int>(sketch.kernel_h);
  sum.kernel_w = static_cast<int>(sketch.kernel_w);
  sum.scale = static_cast<float>(sketch.scale);
  C10_CUDA_CHECK(launch_gradient_sum<T>(sum, at::cuda::getCurrentCUDAStream()));
}

// Fills the tensors that are defined; false, with nothing done, where no tile fits.
template <typename Traits>
bool launch(const Operands& operands, const at::Tensor& grad_s1, const at::Tensor& grad_s2) {
  using T = typename Traits::Type;
  const Sketch& sketch = operands.sketch;
  const cudaDeviceProp* device = at::cuda::getCurrentDeviceProperties();
  ChannelGradientParams params{};
  params.vertical = operands.vertical;
  params.horizontal = operands.horizontal;
  params.batch = operands.input.size(0);
  params.groups = static_cast<int>(sketch.groups);
  params.rank = static_cast<int>(sketch.rank);
  const int64_t most = static_cast<int64_t>(device->sharedMemPerBlockOptin);
  const auto tile =
      TileSearch<Traits>(params.vertical, params.horizontal, params.batch,
                         /*groups=*/1, /*multiprocessors=*/1, gradient_halo_for<Traits>(most))
          .best();
  if (!tile) return false;
  params.tile = *tile;
  const int64_t first_chunks = grad_s1.defined() ? chunks<Traits>(sketch.in_channels) : 0;
  const int64_t second_chunks = grad_s2.defined() ? chunks<Traits>(sketch.out_channels) : 0;
  const int64_t tap_groups = ceil_divide(sketch.positions(), Traits::kTaps);
  const int64_t elements =
      (grad_s1.defined() ? grad_s1.numel() : 0) + (grad_s2.defined() ? grad_s2.numel() : 0);
  const int64_t image_bytes =
      (operands.input.numel() + operands.grad.numel()) * operands.input.element_size();
  params.splits =
      choose_splits<Traits>(params, (first_chunks + second_chunks) * tap_groups * sketch.groups,
                            elements * static_cast<int64_t>(sizeof(float)), image_bytes);
  const int64_t pixel_blocks = ceil_divide(operands.grad.numel(), Traits::kPixels) +
                               ceil_divide(operands.input.numel(), Traits::kPixels);
  const int64_t blocks = (first_chunks + second_chunks) * params.splits;
  if (std::max({blocks, pixel_blocks, elements, params.tiles()}) > kLargestGrid) return false;

  const at::Tensor of_grad =
      grad_s1.defined() ? empty_features<Traits>(operands.grad, sketch) : at::Tensor();
  const at::Tensor of_input =
      grad_s2.defined() ? empty_features<Traits>(operands.input, sketch) : at::Tensor();
  launch_features<Traits>(operands, of_grad, of_input);

  const at::Tensor partial = at::empty(
      {params.splits, elements},
      operands.input.options().dtype(at::kFloat).memory_format(at::MemoryFormat::Contiguous));
  float* parts = partial.mutable_data_ptr<float>();
  if (grad_s1.defined()) {
    params.first = {images_view(operands.input, sketch.in_channels), of_grad.const_data_ptr(),
                    parts};
    parts += params.splits * grad_s1.numel();
  }
  if (grad_s2.defined()) {
    params.second = {images_view(operands.grad, sketch.out_channels), of_input.const_data_ptr(),
                     parts};
  }
  const int shared = static_cast<int>(gradient_shared_bytes<Traits>(params.halo()));
  const dim3 grid(static_cast<unsigned int>(blocks), static_cast<unsigned int>(tap_groups),
                  static_cast<unsigned int>(sketch.groups));
  C10_CUDA_CHECK(launch_channel_gradient<Traits>(params, static_cast<int>(first_chunks), grid,
                                                 shared, at::cuda::getCurrentCUDAStream()));

  if (grad_s1.defined()) {
    launch_sum<T>(params.first, grad_s1, s1_view(grad_s1, sketch), params, sketch);
  }
  if (grad_s2.defined()) {
    launch_sum<T>(params.second, grad_s2, s2_view(grad_s2, sketch), params, sketch);
  }
  return true;
}

template <typename T>
bool launch_for_rank(const Operands& operands, const at::Tensor& grad_s1,
                     const at::Tensor& grad_s2) {
  return for_rank_pairs(operands.sketch.rank, [&](auto pairs) {
    return launch<ChannelGradientTraits<T, pairs>>(operands, grad_s1, grad_s2);
  });
}

at::Tensor empty_gradient(bool wanted, const at::Tensor& like) {
  if (!wanted) return {};
  return at::empty(like.sizes(), like.options(), common_memory_format(like, like));
}

}  // namespace

std::pair<at::Tensor, at::Tensor> try_factor_gradients(const ConvBackwardCall& call,
                                                       const Sketch& sketch) {
  const auto& [grad, input, tensors, output_mask, conv, arguments] = call;
  const bool want_s1 = output_mask[1], want_s2 = output_mask[2];
  const auto type = input.scalar_type();
  const bool half = type == at::kBFloat16 || type == at::kHalf;
  if (!half || !(want_s1 || want_s2) || !takes_layer(input, grad.sizes(), sketch) ||
      !uses_kernel(kChannelConvFactorGradients, type)) {
    return {};
  }
  const at::Tensor grad_s1 = empty_gradient(want_s1, tensors.s1);
  const at::Tensor grad_s2 = empty_gradient(want_s2, tensors.s2);
  const Operands operands{grad,
                          input,
                          tensors.u1.contiguous(),
                          tensors.u2.contiguous(),
                          sketch,
                          axis(input, grad, 2, sketch.kernel_h, conv),
                          axis(input, grad, 3, sketch.kernel_w, conv)};
  const bool done = type == at::kHalf ? launch_for_rank<c10::Half>(operands, grad_s1, grad_s2)
                                      : launch_for_rank<c10::BFloat16>(operands, grad_s1, grad_s2);
  return done ? std::make_pair(grad_s1, grad_s2) : std::pair<at::Tensor, at::Tensor>();
}

}  // namespace sketchlayers::cuda
