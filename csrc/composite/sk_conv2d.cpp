// The factored convolution from ATen's convolutions, for every device.
//   Spatial mixing: z = [S1; B] * x (one convolution with stacked filters), y = [c A, c S2] z (one
//   1x1 convolution). Channel mixing: y = c A (S1 * x) + (c S2) * (B x), where B mixes channels
//   only (a 1x1 convolution). With more than one block S1 filters each block of the inputs, and S2
//   makes each block of the outputs, from features of its own: grouped convolutions.
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/convolution_backward.h>
#include <torch/library.h>

#include "composite/composed.h"
#include "composite/factors.h"

namespace sketchlayers {
namespace {

// The factors as convolution filters, with the groups along the first axis.
class Filters {
 public:
  Filters(const SketchTensors& tensors, const Sketch& sketch)
      : s1_(tensors.s1), s2_(tensors.s2), u1_(tensors.u1), u2_(tensors.u2), sketch_(sketch) {}

  // scale B: (groups * blocks * second_rank, d2/groups, h, w), or 1x1 for channel mixing. Gradients
  // of S2 take c B: a gradient scaled at the end could overflow half types before.
  at::Tensor input_signs(double scale = 1.0) const {
    scale *= sketch_.u2_scale;
    if (!sketch_.mixes_space()) return pointwise(signs(u2_, sketch_.in_channels, scale));
    return signs(u2_, sketch_.inputs(), scale)
        .reshape({-1, sketch_.in_channels, sketch_.kernel_h, sketch_.kernel_w});
  }

  // B^T for channel mixing: (d2, blocks * rank, 1, 1).
  at::Tensor input_signs_transposed() const {
    return pointwise(signs(u2_, sketch_.in_channels, sketch_.u2_scale).transpose(1, 2));
  }

  // [S1; B], sketch rows first in every group: (groups * (rank + second_rank), d2/groups, h, w).
  at::Tensor stacked_inputs() const {
    const at::Tensor first = s1_.reshape({sketch_.groups, sketch_.rank, -1});
    const at::Tensor second = signs(u2_, sketch_.inputs(), sketch_.u2_scale);
    return at::cat({first, second}, 1)
        .reshape({-1, sketch_.in_channels, sketch_.kernel_h, sketch_.kernel_w});
  }

  // [c A, c S2]: (d1, rank + second_rank, 1, 1), and its transpose for gradients.
  at::Tensor stacked_outputs() const { return pointwise(stacked_output_matrix()); }
  at::Tensor stacked_outputs_transposed() const {
    return pointwise(stacked_output_matrix().transpose(1, 2));
  }

  // S1 of every block of inputs: (groups * blocks * rank, d2/groups/blocks, h, w).
  at::Tensor blocked_s1() const {
    if (sketch_.blocks == 1) return s1_;
    const at::Tensor matrix = s1_.reshape({sketch_.groups, sketch_.rank, -1});
    return columns_by_block(matrix, sketch_)
        .reshape({-1, sketch_.block_inputs(), sketch_.kernel_h, sketch_.kernel_w});
  }

  // The way back, of its gradient.
  at::Tensor joined_s1(const at::Tensor& grad) const {
    if (sketch_.blocks == 1) return grad;
    const at::Tensor matrix = grad.reshape({sketch_.groups * sketch_.blocks, sketch_.rank, -1});
    return joined_columns(matrix, sketch_).reshape(s1_.sizes());
  }

  // c A: (d1, blocks * rank, 1, 1), and its transpose.
  at::Tensor output_signs() const { return pointwise(output_sign_matrix().transpose(1, 2)); }
  at::Tensor output_signs_transposed() const { return pointwise(output_sign_matrix()); }

  // c S2: (d1, rank, h, w).
  at::Tensor scaled_s2() const { return s2_ * sketch_.scale; }

  // c S2 for features of spatial mixing: (d1, second_rank, 1, 1).
  at::Tensor pointwise_s2() const { return scaled_s2().reshape({s2_.size(0), -1, 1, 1}); }

 private:
  at::Tensor signs(const at::Tensor& packed, int64_t columns, double scale) const {
    return unpack_signs(packed, columns, 0, s1_.scalar_type(), scale);
  }
  at::Tensor output_sign_matrix() const {
    return signs(u1_, sketch_.out_channels, sketch_.scale * sketch_.u1_scale);
  }
  at::Tensor stacked_output_matrix() const {
    return output_factor(s2_.reshape({sketch_.groups, sketch_.out_channels, -1}), u1_, sketch_);
  }
  static at::Tensor pointwise(const at::Tensor& matrices) {  // (groups, rows, columns)
    return matrices.reshape({-1, matrices.size(2), 1, 1});
  }

  const at::Tensor &s1_, &s2_, &u1_, &u2_;
  const Sketch& sketch_;
};

at::Tensor pointwise_conv(const at::Tensor& input, const at::Tensor& filter, int64_t groups,
                          const std::optional<at::Tensor>& bias = std::nullopt) {
  return at::conv2d(input, filter, bias, /*stride=*/{1, 1}, at::IntArrayRef{0, 0}, {1, 1}, groups);
}

at::Tensor conv(const at::Tensor& input, const at::Tensor& filter, const ConvArguments& conv) {
  return at::conv2d(input, filter, std::nullopt, conv.stride, at::IntArrayRef(conv.padding),
                    effective_dilation(conv, filter), conv.groups);
}

// Gradients of a convolution without bias for (input, filter).
std::pair<at::Tensor, at::Tensor> conv_backward(const at::Tensor& grad, const at::Tensor& input,
                                                const at::Tensor& filter, const ConvArguments& conv,
                                                bool want_input, bool want_filter) {
  // PyTorch's float64 convolution refuses filters whose axes of length 1 have unusual strides.
  const at::Tensor strict = in_format(filter, common_memory_format(filter, filter));
  auto grads =
      at::convolution_backward(grad, input, strict, std::nullopt, conv.stride, conv.padding,
                               effective_dilation(conv, strict), /*transposed=*/false, {0, 0},
                               conv.groups, {want_input, want_filter, false});
  return {std::get<0>(grads), std::get<1>(grads)};
}

// The convolution of every block with its own features.
ConvArguments by_block(ConvArguments conv, const Sketch& sketch) {
  conv.groups *= sketch.blocks;
  return conv;
}

bool is_pixelwise(const at::Tensor& input, const Sketch& sketch, const ConvArguments& conv) {
  if (sketch.blocks > 1) return false;
  const bool plain = conv.stride == std::vector<int64_t>{1, 1} &&
                     conv.padding == std::vector<int64_t>{0, 0} && conv.groups == 1;
  // With few pixels in an image the gradients of the filters, one for each image, would outweigh
  // the images; in half types each would be rounded before they are added.
  const bool many_pixels = input.size(2) * input.size(3) >= 2 * sketch.rank;
  const bool half = compute_type(input.scalar_type()) != input.scalar_type();
  return plain && sketch.positions() == 1 && many_pixels && !half && input.is_contiguous();
}

// The matrix of a pointwise filter, once for each image.
at::Tensor for_each_image(const at::Tensor& filter, const at::Tensor& images) {
  return filter.flatten(1).expand({images.size(0), -1, -1});
}

at::Tensor pixelwise_forward(const at::Tensor& input, const Filters& filters,
                             const std::optional<at::Tensor>& bias) {
  const at::Tensor images = input.flatten(2);
  const at::Tensor inner = at::bmm(for_each_image(filters.stacked_inputs(), input), images);
  const at::Tensor left = for_each_image(filters.stacked_outputs(), input);
  const at::Tensor output =
      bias ? at::baddbmm(bias->view({1, -1, 1}), left, inner) : at::bmm(left, inner);
  return output.unflatten(2, input.sizes().slice(2));
}

}  // namespace

at::Tensor sk_conv2d_composed(const ConvCall& call) {
  const Sketch sketch = check_call(call).sketch;
  const Filters filters(call.tensors, sketch);
  const at::Tensor& input = call.input;
  const ConvArguments& arguments = call.conv;
  at::Tensor output;
  if (is_pixelwise(input, sketch, arguments)) {
    output = pixelwise_forward(input, filters, call.bias);
  } else if (sketch.mixes_space() && sketch.blocks == 1) {
    output = pointwise_conv(conv(input, filters.stacked_inputs(), arguments),
                            filters.stacked_outputs(), arguments.groups, call.bias);
  } else {
    const ConvArguments blocked = by_block(arguments, sketch);
    output = pointwise_conv(conv(input, filters.blocked_s1(), blocked), filters.output_signs(),
                            arguments.groups, call.bias);
    if (sketch.mixes_space()) {
      output.add_(pointwise_conv(conv(input, filters.input_signs(), arguments),
                                 filters.pointwise_s2(), blocked.groups));
    } else {
      output.add_(conv(pointwise_conv(input, filters.input_signs(), arguments.groups),
                       filters.scaled_s2(), blocked));
    }
  }
  return in_format(output, common_memory_format(input, call.tensors.s1));
}

namespace {

// The first `rank` of every group's rank + second_rank channels.
at::Tensor sketch_rows(const at::Tensor& inner, const Sketch& sketch) {
  if (sketch.groups == 1) return inner.narrow(1, 0, sketch.rank);
  return inner.unflatten(1, {sketch.groups, -1}).narrow(2, 0, sketch.rank).flatten(1, 2);
}

LayerGradients pixelwise_backward(const ConvBackwardCall& call, const Filters& filters,
                                  const Sketch& sketch) {
  const auto& [grad, input, tensors, output_mask, arguments, sketch_arguments] = call;
  const auto& [s1, s2, u1, u2] = tensors;
  const at::Tensor images = input.flatten(2);
  const at::Tensor grad_images = grad.flatten(2);
  at::Tensor grad_input, grad_s1, grad_s2;
  if (output_mask[0] || output_mask[1]) {
    const at::Tensor inner =
        at::bmm(for_each_image(filters.stacked_outputs_transposed(), input), grad_images);
    if (output_mask[0]) {
      const at::Tensor inputs = for_each_image(filters.stacked_inputs(), input);
      grad_input = at::bmm(inputs.transpose(1, 2), inner).view_as(input);
    }
    if (output_mask[1]) {
      grad_s1 =
          at::bmm(inner.narrow(1, 0, sketch.rank), images.transpose(1, 2)).sum(0).view(s1.sizes());
    }
  }
  if (output_mask[2]) {
    const at::Tensor signs = filters.input_signs(sketch.scale);
    const at::Tensor features = at::bmm(for_each_image(signs, input), images);
    grad_s2 = at::bmm(grad_images, features.transpose(1, 2)).sum(0).view(s2.sizes());
  }
  return {grad_input, grad_s1, grad_s2};
}

LayerGradients spatial_backward(const ConvBackwardCall& call, const Filters& filters,
                                const Sketch& sketch) {
  const auto& [grad, input, tensors, output_mask, arguments, sketch_arguments] = call;
  const auto& [s1, s2, u1, u2] = tensors;
  at::Tensor grad_input, grad_s1, grad_s2;
  if (output_mask[0] || output_mask[1]) {
    const at::Tensor inner =
        pointwise_conv(grad, filters.stacked_outputs_transposed(), sketch.groups);
    if (output_mask[0]) {
      grad_input =
          conv_backward(inner, input, filters.stacked_inputs(), arguments, true, false).first;
    }
    if (output_mask[1]) {
      grad_s1 = conv_backward(sketch_rows(inner, sketch), input, s1, arguments, false, true).second;
    }
  }
  if (output_mask[2]) {
    const at::Tensor features = conv(input, filters.input_signs(sketch.scale), arguments);
    const at::Tensor pointwise_s2 = s2.reshape({s2.size(0), -1, 1, 1});
    const ConvArguments pointwise{{1, 1}, {0, 0}, {1, 1}, sketch.groups};
    grad_s2 = conv_backward(grad, features, pointwise_s2, pointwise, false, true)
                  .second.reshape(s2.sizes());
  }
  return {grad_input, grad_s1, grad_s2};
}

// Channel mixing, and spatial mixing with more than one block.
LayerGradients two_branch_backward(const ConvBackwardCall& call, const Filters& filters,
                                   const Sketch& sketch) {
  const auto& [grad, input, tensors, output_mask, arguments, sketch_arguments] = call;
  const ConvArguments blocked = by_block(arguments, sketch);
  at::Tensor grad_input, grad_s1, grad_s2;
  if (output_mask[0] || output_mask[1]) {
    const at::Tensor inner = pointwise_conv(grad, filters.output_signs_transposed(), sketch.groups);
    std::tie(grad_input, grad_s1) =
        conv_backward(inner, input, filters.blocked_s1(), blocked, output_mask[0], output_mask[1]);
    if (output_mask[1]) grad_s1 = filters.joined_s1(grad_s1);
  }
  if (output_mask[0] || output_mask[2]) {
    const bool spatial = sketch.mixes_space();
    const at::Tensor signs = filters.input_signs(sketch.scale);
    const at::Tensor features =
        spatial ? conv(input, signs, arguments) : pointwise_conv(input, signs, sketch.groups);
    const ConvArguments pointwise{{1, 1}, {0, 0}, {1, 1}, blocked.groups};
    auto [grad_features, grad_filter] =
        conv_backward(grad, features, spatial ? filters.pointwise_s2() : filters.scaled_s2(),
                      spatial ? pointwise : blocked, output_mask[0], output_mask[2]);
    if (output_mask[0] && spatial) {
      grad_input.add_(
          conv_backward(grad_features, input, filters.input_signs(), arguments, true, false).first);
    } else if (output_mask[0]) {
      grad_input.add_(
          pointwise_conv(grad_features, filters.input_signs_transposed(), sketch.groups));
    }
    if (output_mask[2]) grad_s2 = grad_filter.reshape(tensors.s2.sizes());
  }
  return {grad_input, grad_s1, grad_s2};
}

}  // namespace

LayerGradients sk_conv2d_composed_backward(const ConvBackwardCall& call) {
  const Sketch sketch = check_call(call).sketch;
  const Filters filters(call.tensors, sketch);
  const auto pull_back = is_pixelwise(call.input, sketch, call.conv)  ? pixelwise_backward
                         : sketch.mixes_space() && sketch.blocks == 1 ? spatial_backward
                                                                      : two_branch_backward;
  auto [grad_input, grad_s1, grad_s2] = pull_back(call, filters, sketch);
  const auto wanted = [](bool want, const at::Tensor& gradient, const at::Tensor& like) {
    return want ? in_format(gradient, common_memory_format(like, like)) : like.new_empty({0});
  };
  return {wanted(call.output_mask[0], grad_input, call.input),
          wanted(call.output_mask[1], grad_s1, call.tensors.s1),
          wanted(call.output_mask[2], grad_s2, call.tensors.s2)};
}

TORCH_LIBRARY_IMPL(sketchlayers, CompositeExplicitAutograd, m) {
  m.impl("sk_conv2d_factored", TORCH_FN(ConvCall::unpacked<sk_conv2d_composed>));
  m.impl("sk_conv2d_factored_backward",
         TORCH_FN(ConvBackwardCall::unpacked<sk_conv2d_composed_backward>));
}

}  // namespace sketchlayers
