// The images of a convolution as the kernels take them.
#pragma once

#include <ATen/core/Tensor.h>

#include "cpu/image.h"
#include "cpu/sampling.h"
#include "ops/conv_arguments.h"
#include "ops/sketch.h"

namespace sketchlayers::cpu {

// Images whose rows follow each other without gaps, channels together or apart.
inline at::Tensor dense_images(const at::Tensor& images) {
  return in_format(images, images.suggest_memory_format());
}

inline bool channels_together(const at::Tensor& images) {
  return images.stride(1) == 1 && images.is_contiguous(at::MemoryFormat::ChannelsLast);
}

// Their number and axes. A pointwise convolution sees pixels in one column, without row ends.
struct ConvGeometry {
  ConvGeometry(const at::Tensor& input, at::IntArrayRef output_sizes, int64_t kernel_h,
               int64_t kernel_w, const ConvArguments& conv)
      : images(input.size(0)) {
    const auto axis = [&](int64_t i, int64_t kernel) {
      const auto k = static_cast<size_t>(i);
      return ConvAxis{input.size(2 + i), output_sizes[2 + k], kernel,
                      conv.stride[k],    conv.padding[k],     conv.dilation[k]};
    };
    rows = axis(0, kernel_h);
    columns = axis(1, kernel_w);
    pointwise = kernel_h * kernel_w == 1 && rows.stride == 1 && columns.stride == 1 &&
                rows.padding == 0 && columns.padding == 0;
    if (!pointwise) return;
    const int64_t pixels = rows.input * columns.input;
    rows = identity_axis(pixels);
    columns = identity_axis(1);
  }

  // All images as the rows of one.
  void merge_images() {
    rows.input = rows.output = rows.output * images;
    images = 1;
  }

  // Whether rows are not so wide that the tiles' buffers would be large.
  bool is_narrow() const {
    constexpr int64_t kWidest = 1 << 14;
    return columns.input <= kWidest && columns.output <= kWidest;
  }

  template <typename T>
  ImageView<T> view(const at::Tensor& tensor, T* data) const {
    const ImageView<T> view{data, tensor.stride(0), tensor.stride(1), tensor.stride(2),
                            tensor.stride(3)};
    return pointwise ? view.in_one_column() : view;
  }

  int64_t images;
  ConvAxis rows;
  ConvAxis columns;
  bool pointwise;
};

}  // namespace sketchlayers::cpu
