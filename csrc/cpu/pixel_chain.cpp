#include "cpu/pixel_chain.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <memory>
#include <type_traits>
#include <vector>

#include "cpu/tasks.h"
#include "cpu/tile_layout.h"
#include "cpu/vector_kernels.h"

namespace sketchlayers::cpu {
namespace {

constexpr int64_t kPixelTileFloats = 1 << 17;  // inputs and features of a tile
constexpr int64_t kFeatures = 64;              // before a depthwise core, made at a time
constexpr float kOne = 1;

// Matrices (rows, columns), one after the other, transposed, with columns of zeros to whole steps.
class Transposed {
 public:
  Transposed(const float* data, int64_t matrices, int64_t rows, int64_t columns)
      : width(whole_steps(rows)), size_(columns * width) {
    if (!data) return;
    // One step more: what follows a row may be overwritten.
    const int64_t count = matrices * size_ + kColumnStep;
    numbers_.reset(new float[static_cast<size_t>(count)]);
    std::fill_n(numbers_.get(), count, 0.0f);
    for (int64_t i = 0; i < matrices; ++i) {
      vector_kernels().transpose(data + i * rows * columns, columns, rows, columns,
                                 numbers_.get() + i * size_, width, /*padded=*/false);
    }
  }

  const float* matrix(int64_t i) const { return numbers_.get() + i * size_; }
  const int64_t width;  // floats of a row

 private:
  int64_t size_;
  std::unique_ptr<float[]> numbers_;
};

// Pixels of a tile that a core reads, `pixel` floats each.
struct Grid {
  const float* data;
  int64_t pixel;
  int64_t row;
};

struct PixelTile {
  int64_t image;
  int64_t group;
  int64_t first_row;
  int64_t rows;
  bool follows;  // the one above, which the same thread has made
};

template <typename T>
class PixelChain {
 public:
  PixelChain(const ChainConv& conv, const ConvAxis& rows, const ConvAxis& columns,
             const ImageView<const T>& input, const ImageView<T>& output)
      : conv_(conv),
        rows_(rows),
        columns_(columns),
        input_(input),
        output_(output),
        first_(conv.first, conv.groups, conv.before, conv.inputs),
        core_(conv.core, conv.groups, conv.after,
              conv.positions * (conv.depthwise ? 1 : conv.before)),
        last_(conv.last, conv.groups, conv.outputs, conv.after),
        reads_input_(std::is_same_v<T, float> && !conv.first && rows.padding == 0 &&
                     columns.padding == 0),
        writes_output_(std::is_same_v<T, float> && conv.outputs % kColumnStep == 0),
        block_(conv.depthwise ? std::min(kFeatures, first_.width) : first_.width) {
    const Sampling sampling = forward_sampling(rows, columns);
    const int64_t floats = conv.inputs + core_.width + (conv.depthwise ? 0 : first_.width);
    const int64_t positions = std::clamp<int64_t>(kPixelTileFloats / floats, 64, 2048);
    tile_rows_ = tile_rows(positions, conv.images * conv.groups, sampling, /*masked=*/false);
    row_tiles_ = ceil_divide(rows.output, tile_rows_);
    pitch_ = reach(columns, columns.output);
    if (conv.first) {
      kept_rows_ = std::max<int64_t>(0, (rows.kernel - 1) * rows.dilation + 1 - rows.stride);
    }
    if (conv.bias) {
      bias_.assign(static_cast<size_t>(conv.groups * whole_steps(conv.outputs)), 0.0f);
      for (int64_t g = 0; g < conv.groups; ++g) {
        std::copy_n(conv.bias + g * conv.outputs, conv.outputs, bias_.data() + g * bias_row());
      }
    }
    const Grid grid = grid_of(nullptr);
    for (int64_t i = 0; i < rows.kernel; ++i) {
      for (int64_t j = 0; j < columns.kernel; ++j) {
        const int64_t offset = i * rows.dilation * grid.row + j * columns.dilation * grid.pixel;
        source_taps_.push_back(static_cast<int32_t>(offset));
        const auto tap = static_cast<int64_t>(filter_taps_.size());
        filter_taps_.push_back(static_cast<int32_t>(tap * core_.width));
      }
    }
  }

  void run() const {
    const int64_t others = conv_.images * conv_.groups;
    const int64_t run = kept_rows_ > 0 ? run_length(row_tiles_, others) : 1;
    const int64_t runs = ceil_divide(row_tiles_, run);
    run_tasks(others * runs, [&](int64_t i) {
      const int64_t first = i % runs * run;
      const int64_t end = std::min(first + run, row_tiles_);
      for (int64_t t = first; t < end; ++t) make(i / runs, t * tile_rows_, t > first);
    });
  }

 private:
  // `follows`: this thread has just made the tile above.
  void make(int64_t image, int64_t first_row, bool follows) const {
    const PixelTile tile{image / conv_.groups, image % conv_.groups, first_row,
                         std::min(tile_rows_, rows_.output - first_row), follows};
    float* source = Scratch::get(source_floats() + grid_floats() + after_floats() + work_floats() +
                                 kept_rows_ * pitch_ * first_.width);
    float* grid = source + source_floats();
    float* after = grid + grid_floats();
    float* work = after + after_floats();
    float* kept = work + work_floats();
    if (conv_.depthwise) {
      for (int64_t f = 0; f < first_.width; f += block_) {
        const int64_t features = std::min(block_, first_.width - f);
        make_grid(tile, f, features, grid, source, kept);
        make_depthwise(tile, f, features, grid, after);
      }
    } else {
      if (!reads_input_) make_grid(tile, 0, first_.width, grid, source, kept);
      if (conv_.last) make_core(tile, grid, after, core_.width, nullptr);
    }
    make_outputs(tile, grid, after, work);
  }

  // Positions between the first that some outputs read along an axis and the last one.
  static int64_t reach(const ConvAxis& axis, int64_t outputs) {
    return (outputs - 1) * axis.stride + (axis.kernel - 1) * axis.dilation + 1;
  }
  int64_t source_floats() const {  // a row of the input in float32
    return std::is_same_v<T, float> ? 0 : whole_steps(columns_.input * conv_.inputs);
  }
  int64_t grid_pixel() const { return conv_.first ? block_ : conv_.inputs; }
  int64_t grid_floats() const {
    return reads_input_ ? 0 : whole_steps(reach(rows_, tile_rows_) * pitch_ * grid_pixel());
  }
  int64_t after_floats() const {
    return conv_.last ? tile_rows_ * columns_.output * core_.width : 0;
  }
  int64_t work_floats() const {
    return writes_output_ ? 0 : tile_rows_ * columns_.output * whole_steps(conv_.outputs);
  }
  int64_t bias_row() const { return whole_steps(conv_.outputs); }

  Grid grid_of(const float* made) const {
    if (reads_input_) return {nullptr, input_.column, input_.row};
    return {made, grid_pixel(), pitch_ * grid_pixel()};
  }

  // Pixels of the input from a column on, in float32.
  const float* pixels(const PixelTile& tile, int64_t row, int64_t column, int64_t count,
                      float* buffer, int64_t* step) const {
    const auto image = input_.at(tile.image, tile.group * conv_.inputs);
    const T* data = image.data + row * image.row + column * image.column;
    if constexpr (std::is_same_v<T, float>) {
      *step = image.column;
      return data;
    } else {
      for (int64_t i = 0; i < count; ++i) {
        copy_run(data + i * image.column, 1, conv_.inputs, buffer + i * conv_.inputs);
      }
      *step = conv_.inputs;
      return buffer;
    }
  }

  // What the core reads: features [first, first + count) before it, or the inputs, with zeros where
  // there is no input. The last rows of features are kept for the tile below.
  void make_grid(const PixelTile& tile, int64_t first, int64_t count, float* grid, float* source,
                 float* kept) const {
    const int64_t pixel = conv_.first ? count : conv_.inputs;
    const int64_t rows = reach(rows_, tile.rows);
    const int64_t begin = std::min(columns_.padding, pitch_);
    const int64_t end = std::min(begin + columns_.input, pitch_);
    const int64_t kept_floats = kept_rows_ * pitch_ * pixel;
    kept += kept_rows_ * pitch_ * first;
    if (tile.follows) std::copy_n(kept, kept_floats, grid);
    for (int64_t r = tile.follows ? kept_rows_ : 0; r < rows; ++r) {
      float* target = grid + r * pitch_ * pixel;
      const int64_t row = tile.first_row * rows_.stride - rows_.padding + r;
      if (row < 0 || row >= rows_.input || begin == end) {
        std::fill_n(target, pitch_ * pixel, 0.0f);
        continue;
      }
      std::fill_n(target, begin * pixel, 0.0f);
      std::fill(target + end * pixel, target + pitch_ * pixel, 0.0f);
      int64_t step = 0;
      const float* x = pixels(tile, row, 0, end - begin, source, &step);
      if (conv_.first) {
        const Product product{
            x,         step,         1, kNoOffset, first_.matrix(tile.group) + first, first_.width,
            kNoOffset, conv_.inputs, 1};
        vector_kernels().product(&product, 1, end - begin, count, nullptr, target + begin * pixel,
                                 pixel, false);
      } else {
        for (int64_t i = 0; i < end - begin; ++i) {
          std::copy_n(x + i * step, conv_.inputs, target + (begin + i) * pixel);
        }
      }
    }
    std::copy_n(grid + tile.rows * rows_.stride * pitch_ * pixel, kept_floats, kept);
  }

  void make_depthwise(const PixelTile& tile, int64_t first, int64_t count, const float* grid,
                      float* after) const {
    std::vector<int32_t> taps;
    for (int64_t i = 0; i < rows_.kernel; ++i) {
      for (int64_t j = 0; j < columns_.kernel; ++j) {
        const int64_t offset = i * rows_.dilation * pitch_ + j * columns_.dilation;
        taps.push_back(static_cast<int32_t>(offset * count));
      }
    }
    for (int64_t r = 0; r < tile.rows; ++r) {
      vector_kernels().depthwise_pixels(
          core_.matrix(tile.group) + first, core_.width, conv_.positions,
          grid + r * rows_.stride * pitch_ * count, columns_.stride * count, taps.data(),
          columns_.output, count, after + r * columns_.output * core_.width + first, core_.width);
    }
  }

  // The core of all pixels of a tile into rows of `out`, `step` floats for each pixel.
  void make_core(const PixelTile& tile, const float* made, float* out, int64_t step,
                 const Product* bias) const {
    Grid grid = grid_of(made);
    if constexpr (std::is_same_v<T, float>) {
      if (reads_input_) {
        const auto image = input_.at(tile.image, tile.group * conv_.inputs);
        grid.data = image.data + tile.first_row * rows_.stride * image.row;
      }
    }
    // Of a column of pixels, as all are of a 1x1 convolution, the rows go together.
    const bool is_column = columns_.output == 1;
    const int64_t calls = is_column ? 1 : tile.rows;
    const int64_t pixels = is_column ? tile.rows : columns_.output;
    const int64_t next = is_column ? rows_.stride * grid.row : columns_.stride * grid.pixel;
    for (int64_t r = 0; r < calls; ++r) {
      const Product parts[2] = {
          {grid.data + r * rows_.stride * grid.row, next, 1, source_taps_.data(),
           core_.matrix(tile.group), conv_.positions * core_.width, filter_taps_.data(),
           conv_.before, conv_.positions},
          bias ? *bias : Product{}};
      vector_kernels().product(parts, bias ? 2 : 1, pixels, core_.width, nullptr,
                               out + r * pixels * step, step, false);
    }
  }

  void make_outputs(const PixelTile& tile, const float* grid, const float* after,
                    float* work) const {
    const int64_t width = whole_steps(conv_.outputs);
    const auto image = output_.at(tile.image, tile.group * conv_.outputs);
    T* target = image.data + tile.first_row * image.row;
    float* out = work;
    int64_t step = width;
    if constexpr (std::is_same_v<T, float>) {
      if (writes_output_) {
        out = target;
        step = image.column;
      }
    }
    const Product bias{&kOne, 0,         0, kNoOffset, bias_.data() + tile.group * bias_row(),
                       0,     kNoOffset, 1, 1};
    const bool has_bias = !bias_.empty();
    const int64_t pixels = tile.rows * columns_.output;
    if (conv_.last) {
      const Product parts[2] = {{after, core_.width, 1, kNoOffset, last_.matrix(tile.group),
                                 last_.width, kNoOffset, conv_.after, 1},
                                bias};
      vector_kernels().product(parts, has_bias ? 2 : 1, pixels, width, nullptr, out, step, false);
    } else {
      make_core(tile, grid, out, step, has_bias ? &bias : nullptr);
    }
    if (writes_output_) return;
    for (int64_t i = 0; i < pixels; ++i) {
      for (int64_t c = 0; c < conv_.outputs; ++c) {
        target[i * image.column + c] = static_cast<T>(work[i * width + c]);
      }
    }
  }

  const ChainConv& conv_;
  const ConvAxis rows_;
  const ConvAxis columns_;
  const ImageView<const T> input_;
  const ImageView<T> output_;
  const Transposed first_;  // (inputs, before)
  const Transposed core_;   // (before * positions, after), or (positions, after)
  const Transposed last_;   // (after, outputs)
  const bool reads_input_;
  const bool writes_output_;
  const int64_t block_;
  int64_t tile_rows_;
  int64_t row_tiles_;
  int64_t pitch_;
  int64_t kept_rows_ = 0;  // of features, that a tile shares with the one below
  std::vector<float> bias_;
  std::vector<int32_t> source_taps_;
  std::vector<int32_t> filter_taps_;
};

}  // namespace

bool takes_pixels(const ChainConv& conv, const ConvAxis& rows, const ConvAxis& columns) {
  if (conv.images * rows.output * columns.output < 2 * std::max(conv.before, conv.after)) {
    return false;
  }
  if (conv.depthwise) return true;
  // A core that mixes features is read once for every row of pixels.
  constexpr int64_t kLargestCore = 1 << 16;
  const int64_t core = conv.before * conv.positions;
  if (core * conv.after > kLargestCore) return false;
  // Vectors are of features, and end with zeros where these fill no whole step. If there are many,
  // features are better rows.
  constexpr double kMostZeros = 1.35;
  const auto work = [&](const auto& vectors) {
    return static_cast<double>((conv.first ? conv.inputs * vectors(conv.before) : 0) +
                               core * vectors(conv.after) +
                               (conv.last ? conv.after * vectors(conv.outputs) : 0));
  };
  return work(whole_steps) <= kMostZeros * work([](int64_t features) { return features; });
}

template <typename T>
void run_pixels(const ChainConv& conv, const ConvAxis& rows, const ConvAxis& columns,
                const ImageView<const T>& input, const ImageView<T>& output) {
  if (conv.images * rows.output * columns.output == 0) return;
  PixelChain<T>(conv, rows, columns, input, output).run();
}

#define SKETCHLAYERS_INSTANTIATE(T)                                            \
  template void run_pixels(const ChainConv&, const ConvAxis&, const ConvAxis&, \
                           const ImageView<const T>&, const ImageView<T>&)
SKETCHLAYERS_INSTANTIATE(float);
SKETCHLAYERS_INSTANTIATE(c10::BFloat16);
SKETCHLAYERS_INSTANTIATE(c10::Half);
#undef SKETCHLAYERS_INSTANTIATE

}  // namespace sketchlayers::cpu
