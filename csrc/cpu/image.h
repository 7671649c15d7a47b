// Images of any strides, and the ways between them and the kernels' buffers of float32.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/sampling.h"
#include "cpu/vector_kernels.h"

namespace sketchlayers::cpu {

// A batch of images; strides in elements.
template <typename T>
struct ImageView {
  T* data;
  int64_t image;
  int64_t channel;
  int64_t row;
  int64_t column;

  // One image from a channel on.
  ImageView at(int64_t which, int64_t first_channel) const {
    return {data + which * image + first_channel * channel, image, channel, row, column};
  }
  // All pixels in one column: the same to a pointwise convolution, and without row ends. Rows must
  // follow each other without gaps.
  ImageView in_one_column() const { return {data, image, channel, column, column}; }
  // The positions index * step + phase.
  ImageView grid(const ImageGrid& grid, int64_t row_step, int64_t column_step) const {
    return {data + grid.row_phase * row + grid.column_phase * column, image, channel,
            row * row_step, column * column_step};
  }
};

// Rows [first_row, first_row + rows) of a grid as they lie in a buffer: each row takes `pitch`
// floats, the first of them for column `first_column`; what lies outside the grid is zero.
struct Window {
  int64_t first_row;
  int64_t rows;
  int64_t first_column;
  int64_t pitch;
  int64_t grid_rows;
  int64_t grid_columns;
  int64_t last_column;  // one past what is needed

  int64_t content_begin() const { return std::clamp<int64_t>(first_column, 0, grid_columns); }
  int64_t content_end() const {
    return std::clamp<int64_t>(last_column, content_begin(), grid_columns);
  }
};

template <typename T>
void copy_run(const T* in, int64_t stride, int64_t count, float* out) {
  if (stride == 1) {
    if constexpr (std::is_same_v<T, float>) {
      if (count >= 64) {
        std::memcpy(out, in, static_cast<size_t>(count) * sizeof(float));
        return;
      }
    }
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(in[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(in[i * stride]);
  }
}

// Rows of `out` get `before` zeros, `count` elements, and `after` zeros.
template <typename T>
void copy_rows(const T* in, int64_t in_row, int64_t in_column, int64_t rows, int64_t count,
               float* out, int64_t out_row, int64_t before, int64_t after) {
  if constexpr (std::is_same_v<T, float>) {
    if (in_column == 1) {
      vector_kernels().copy_rows(in, in_row, rows, count, out, out_row, before, after);
      return;
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    float* target = out + r * out_row;
    std::fill(target, target + before, 0.0f);
    copy_run(in + r * in_row, in_column, count, target + before);
    std::fill(target + before + count, target + before + count + after, 0.0f);
  }
}

// channels x run of pixels, out[c * out_channel + i], from an image whose channels lie together.
// `out` has room for whole steps; what follows the run is overwritten.
template <typename T>
void transpose_run(const T* in, int64_t pixel, int64_t count, int64_t channels, float* out,
                   int64_t out_channel, float* pixels) {
  const VectorKernels& kernels = vector_kernels();
  if constexpr (std::is_same_v<T, float>) {
    kernels.transpose(in, pixel, count, channels, out, out_channel, /*padded=*/true);
  } else {
    for (int64_t first = 0; first < count; first += kColumnStep) {
      const int64_t length = std::min(kColumnStep, count - first);
      for (int64_t i = 0; i < length; ++i) {
        copy_run(in + (first + i) * pixel, 1, channels, pixels + i * channels);
      }
      kernels.transpose(pixels, channels, length, channels, out + first, out_channel,
                        /*padded=*/true);
    }
  }
}

// Fills out[c * out_channel + position] for `channels` channels of a window; each channel ends in
// zeros up to `out_channel`. `pixels` has room for kColumnStep * channels floats.
template <typename T>
void pack_window(const ImageView<const T>& grid, int64_t channels, const Window& window, float* out,
                 int64_t out_channel, float* pixels) {
  const int64_t begin = window.content_begin();
  const int64_t end = window.content_end();
  const int64_t lead = begin - window.first_column;
  const int64_t count = end - begin;
  const bool together = grid.channel == 1 && grid.column != 1;
  const int64_t first = std::clamp<int64_t>(-window.first_row, 0, window.rows);
  const int64_t last =
      count > 0 ? std::clamp<int64_t>(window.grid_rows - window.first_row, first, window.rows)
                : first;
  // Rows without gaps in image and buffer are one run.
  const bool merge = count == window.pitch && grid.row == count * grid.column;
  const int64_t step = merge ? std::max<int64_t>(1, last - first) : 1;
  const auto clear = [&](int64_t begin_row, int64_t end_row) {
    if (begin_row == end_row) return;
    for (int64_t c = 0; c < channels; ++c) {
      float* line = out + c * out_channel;
      std::fill(line + begin_row * window.pitch, line + end_row * window.pitch, 0.0f);
    }
  };
  clear(0, first);
  const int64_t length = step * count;
  const int64_t after = step * window.pitch - lead - length;
  const auto row = [&](int64_t r) {
    return grid.data + (window.first_row + r) * grid.row + begin * grid.column;
  };
  if (together) {
    for (int64_t r = first; r < last; r += step) {
      float* target = out + r * window.pitch;
      transpose_run(row(r), grid.column, length, channels, target + lead, out_channel, pixels);
      for (int64_t c = 0; c < channels && lead + after > 0; ++c) {
        float* line = target + c * out_channel;
        std::fill(line, line + lead, 0.0f);
        std::fill(line + lead + length, line + lead + length + after, 0.0f);
      }
    }
  } else if (first < last) {
    for (int64_t c = 0; c < channels; ++c) {
      copy_rows(row(first) + c * grid.channel, step * grid.row, grid.column, (last - first) / step,
                length, out + c * out_channel + first * window.pitch, step * window.pitch, lead,
                after);
    }
  }
  clear(last, window.rows);
}

// Writes in[c * in_channel + r * pitch + i] to rows [first_row, ...) of a grid with `columns`
// columns.
template <typename T>
void store_window(const float* in, int64_t in_channel, int64_t pitch, int64_t channels,
                  const ImageView<T>& grid, int64_t first_row, int64_t rows, int64_t columns) {
  const bool merge = columns == pitch && grid.row == columns * grid.column;
  const int64_t step = merge ? rows : 1;
  const int64_t length = merge ? rows * columns : columns;
  const bool together = grid.channel == 1 && grid.column != 1;
  if constexpr (std::is_same_v<T, float>) {
    if (!together && grid.column == 1) {
      for (int64_t c = 0; c < channels; ++c) {
        vector_kernels().copy_rows(in + c * in_channel, step * pitch, rows / step, length,
                                   grid.data + first_row * grid.row + c * grid.channel,
                                   step * grid.row, 0, 0);
      }
      return;
    }
  }
  for (int64_t r = 0; r < rows; r += step) {
    T* target = grid.data + (first_row + r) * grid.row;
    const float* source = in + r * pitch;
    if constexpr (std::is_same_v<T, float>) {
      if (together) {
        vector_kernels().transpose(source, in_channel, channels, length, target, grid.column,
                                   /*padded=*/false);
        continue;
      }
    }
    // The inner loop is over what lies together in the image.
    if (together) {
      for (int64_t i = 0; i < length; ++i) {
        for (int64_t c = 0; c < channels; ++c) {
          target[i * grid.column + c] = static_cast<T>(source[c * in_channel + i]);
        }
      }
    } else {
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t i = 0; i < length; ++i) {
          target[c * grid.channel + i * grid.column] = static_cast<T>(source[c * in_channel + i]);
        }
      }
    }
  }
}

}  // namespace sketchlayers::cpu
