#include "cpu/two_sided_gradient.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <memory>
#include <numeric>

#include "cpu/scratch.h"
#include "cpu/tasks.h"

namespace sketchlayers::cpu {
namespace {

constexpr int64_t kSlice = 64;            // channels of one task's part of a gradient
constexpr int64_t kPixels = 512;          // of a packed tile: with kSlice channels, 128 KiB
constexpr int64_t kFeaturePixels = 1024;  // of one task's part of the features
constexpr int64_t kWaveFloats = 1 << 18;  // of the features that exist at one time
constexpr int32_t kNoOffset[1] = {0};

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Outputs [first, last) for which the position that a tap reads lies in [begin, end).
struct Range {
  int64_t first;
  int64_t last;
  int64_t size() const { return std::max<int64_t>(0, last - first); }
};

Range readers(const ConvAxis& axis, int64_t tap, int64_t begin, int64_t end) {
  const int64_t distance = tap * axis.dilation - axis.padding;
  const auto first_at_least = [&](int64_t position) {
    return std::clamp<int64_t>(-floor_divide(distance - position, axis.stride), 0, axis.output);
  };
  return {first_at_least(begin), first_at_least(end)};
}

// One of the two gradients: features of one image against the pixels of the other.
template <typename T>
struct Side {
  ImageView<const T> pixels;  // x for dS1, dy for dS2
  int64_t channels;           // of a group
  int64_t image_rows;         // of the images with the pixels
  int64_t image_columns;
  ImageView<const T> featured;  // dy for dS1, x for dS2
  int64_t featured_channels;
  int64_t positions;  // pixels of the images that the features are of
  Signs signs;
  bool pixels_are_inputs;

  int64_t feature_row() const { return whole_steps(positions); }
};

template <typename T>
class GradientRunner {
 public:
  GradientRunner(const TwoSidedGradient& g, const ImageView<const T>& grad,
                 const ImageView<const T>& input)
      : g_(g), taps_(g.rows.kernel * g.columns.kernel) {
    const int64_t outputs = g.rows.output * g.columns.output;
    const int64_t inputs = g.rows.input * g.columns.input;
    if (g.grad_s1) {
      sides_.push_back({input, g.inputs, g.rows.input, g.columns.input, grad, g.outputs, outputs,
                        g.output_signs, true});
    }
    if (g.grad_s2) {
      sides_.push_back({grad, g.outputs, g.rows.output, g.columns.output, input, g.inputs, inputs,
                        g.input_signs, false});
    }
    for (const Side<T>& side : sides_) {
      for (int64_t group = 0; group < g.groups; ++group) {
        for (int64_t c = 0; c < side.channels; c += kSlice) slices_.push_back({&side, group, c});
      }
      image_floats_ += g.groups * g.rank * side.feature_row();
    }
    columns_by_one_.resize(static_cast<size_t>(g.columns.output));
    std::iota(columns_by_one_.begin(), columns_by_one_.end(), 0);
    for (int64_t x = 0; x < g.columns.output; ++x) {
      columns_by_stride_.push_back(static_cast<int32_t>(x * g.columns.stride));
      pixels_by_one_.push_back(static_cast<int32_t>(x * kSlice));
      pixels_by_stride_.push_back(static_cast<int32_t>(x * g.columns.stride * kSlice));
    }
  }

  void run() {
    const int64_t wave =
        std::clamp<int64_t>(kWaveFloats / std::max<int64_t>(1, image_floats_), 1, g_.images);
    // Enough tasks for all threads; more would only be more to add up.
    const int64_t slices = static_cast<int64_t>(slices_.size());
    splits_ = std::clamp<int64_t>(divide_up(4 * at::get_num_threads(), slices), 1, wave);
    if (at::get_num_threads() == 1) splits_ = 1;
    const int64_t part = taps_ * g_.rank * kSlice;
    const std::unique_ptr<float[]> sums(new float[static_cast<size_t>(slices * splits_ * part)]());
    const std::unique_ptr<float[]> features(new float[static_cast<size_t>(wave * image_floats_)]);
    for (int64_t first = 0; first < g_.images; first += wave) {
      const int64_t images = std::min(wave, g_.images - first);
      make_features(first, images, features.get());
      run_tasks(slices * splits_, [&](int64_t i) {
        const int64_t split = i / slices;
        for (int64_t image = split; image < images; image += splits_) {
          accumulate(slices_[static_cast<size_t>(i % slices)], first + image,
                     features.get() + image * image_floats_, sums.get() + i * part);
        }
      });
    }
    run_tasks(slices, [&](int64_t i) {
      float* total = sums.get() + i * part;
      for (int64_t split = 1; split < splits_; ++split) {
        const float* more = sums.get() + (split * slices + i) * part;
        for (int64_t k = 0; k < part; ++k) total[k] += more[k];
      }
      store(slices_[static_cast<size_t>(i)], total);
    });
  }

 private:
  struct Slice {
    const Side<T>* side;
    int64_t group;
    int64_t first_channel;
    int64_t channels() const { return std::min(kSlice, side->channels - first_channel); }
  };

  // Where the features of a side begin among those of one image.
  int64_t feature_offset(const Side<T>& side, int64_t group) const {
    int64_t offset = group * g_.rank * side.feature_row();
    for (const Side<T>& earlier : sides_) {
      if (&earlier == &side) break;
      offset += g_.groups * g_.rank * earlier.feature_row();
    }
    return offset;
  }

  void make_features(int64_t first_image, int64_t images, float* features) const {
    for (const Side<T>& side : sides_) {
      const int64_t tiles = divide_up(side.positions, kFeaturePixels);
      run_tasks(images * g_.groups * tiles, [&](int64_t i) {
        const int64_t group = i / tiles % g_.groups;
        const int64_t image = i / tiles / g_.groups;
        const int64_t first = i % tiles * kFeaturePixels;
        const int64_t count = std::min(kFeaturePixels, side.positions - first);
        float* out = features + image * image_floats_ + feature_offset(side, group) + first;
        mix(side, side.featured.at(first_image + image, group * side.featured_channels), group,
            first, count, out);
      });
    }
  }

  // out[j][i] = sum over channels of sign(j, c) * image[c][first + i].
  void mix(const Side<T>& side, const ImageView<const T>& image, int64_t group, int64_t first,
           int64_t count, float* out) const {
    const VectorKernels& kernels = vector_kernels();
    const int64_t columns = whole_steps(count);
    const ImageView<const T> run{image.data + first * image.column, 0, image.channel, image.column,
                                 image.column};
    float* signs =
        Scratch::get(g_.rank * kSlice + kSlice * (columns + kColumnStep) + kSlice * kColumnStep);
    float* buffer = signs + g_.rank * kSlice;
    float* pixels = buffer + kSlice * (columns + kColumnStep);
    for (int64_t c = 0; c < side.featured_channels; c += kSlice) {
      const int64_t channels = std::min(kSlice, side.featured_channels - c);
      for (int64_t j = 0; j < g_.rank; ++j) {
        kernels.expand_signs(side.signs.row(group, j), c, channels, side.signs.magnitude,
                             signs + j * kSlice);
      }
      const float* source = nullptr;
      int64_t channel = run.channel;
      if constexpr (std::is_same_v<T, float>) {
        if (run.column == 1 && columns == count) source = run.data + c * run.channel;
      }
      if (!source) {
        channel = columns + kColumnStep;
        pack_window(run.at(0, c), channels, Window{0, count, 0, 1, count, 1, 1}, buffer, channel,
                    pixels);
        source = buffer;
      }
      const Product sums{signs, kSlice, 1, kNoOffset, source, channel, kNoOffset, channels, 1};
      kernels.product(&sums, 1, g_.rank, columns, nullptr, out, side.feature_row(), c > 0);
    }
  }

  // Adds one image's part to sums[tap][j][channel of the slice].
  void accumulate(const Slice& slice, int64_t image, const float* features, float* sums) const {
    const Side<T>& side = *slice.side;
    const ImageView<const T> view =
        side.pixels.at(image, slice.group * side.channels + slice.first_channel);
    const int64_t height = std::max<int64_t>(1, kPixels / side.image_columns);
    const int64_t room = std::min(height, side.image_rows) * side.image_columns + kColumnStep;
    float* buffer = Scratch::get(room * kSlice + kColumnStep * (room + kSlice));
    const float* own = features + feature_offset(side, slice.group);
    for (int64_t begin = 0; begin < side.image_rows; begin += height) {
      const int64_t end = std::min(begin + height, side.image_rows);
      pack_pixels(view, begin * side.image_columns, (end - begin) * side.image_columns,
                  slice.channels(), buffer, buffer + room * kSlice);
      for (int64_t i = 0; i < g_.rows.kernel; ++i) {
        for (int64_t j = 0; j < g_.columns.kernel; ++j) {
          float* target = sums + (i * g_.columns.kernel + j) * g_.rank * kSlice;
          add_tap(side, i, j, begin, end, own, buffer, whole_steps(slice.channels()), target);
        }
      }
    }
  }

  // Pixels with their channels together, out[pixel][channel], filled up with zeros.
  static void pack_pixels(const ImageView<const T>& view, int64_t first, int64_t count,
                          int64_t channels, float* out, float* line) {
    const T* source = view.data + first * view.column;
    if (view.channel == 1) {
      for (int64_t i = 0; i < count; ++i) {
        copy_run(source + i * view.column, 1, channels, out + i * kSlice);
        std::fill(out + i * kSlice + channels, out + i * kSlice + whole_steps(channels), 0.0f);
      }
      return;
    }
    if constexpr (std::is_same_v<T, float>) {
      if (view.column == 1) {
        vector_kernels().transpose(source, view.channel, channels, count, out, kSlice, true);
        return;
      }
    }
    for (int64_t c = 0; c < channels; c += kColumnStep) {
      const int64_t lines = std::min(kColumnStep, channels - c);
      for (int64_t i = 0; i < lines; ++i) {
        copy_run(source + (c + i) * view.channel, view.column, count, line + i * count);
      }
      vector_kernels().transpose(line, count, lines, count, out + c, kSlice, true);
    }
  }

  // The product over the pixels that one tap connects, for rows [begin, end) of the packed image.
  void add_tap(const Side<T>& side, int64_t i, int64_t j, int64_t begin, int64_t end,
               const float* features, const float* pixels, int64_t channels, float* target) const {
    const ConvAxis& rows = g_.rows;
    const ConvAxis& columns = g_.columns;
    const Range x = readers(columns, j, 0, columns.input);
    Range y =
        side.pixels_are_inputs ? readers(rows, i, begin, end) : readers(rows, i, 0, rows.input);
    if (!side.pixels_are_inputs) {
      y = {std::max(y.first, begin), std::min(y.last, end)};
    }
    if (x.size() == 0 || y.size() == 0) return;
    const int64_t input_row = input_position(rows, y.first, i);
    const int64_t input_column = input_position(columns, x.first, j);
    const bool own = side.pixels_are_inputs;
    const int64_t read = input_row * columns.input + input_column;
    const int64_t written = y.first * columns.output + x.first;
    const int64_t read_step = rows.stride * columns.input;
    const int64_t packed = begin * side.image_columns;
    const Product product{features + (own ? written : read),
                          side.feature_row(),
                          own ? columns.output : read_step,
                          own ? columns_by_one_.data() : columns_by_stride_.data(),
                          pixels + ((own ? read : written) - packed) * kSlice,
                          (own ? read_step : columns.output) * kSlice,
                          own ? pixels_by_stride_.data() : pixels_by_one_.data(),
                          y.size(),
                          x.size()};
    vector_kernels().product(&product, 1, g_.rank, channels, nullptr, target, kSlice, true);
  }

  void store(const Slice& slice, const float* sums) const {
    const int64_t channels = slice.channels();
    const bool first = slice.side->pixels_are_inputs;
    for (int64_t tap = 0; tap < taps_; ++tap) {
      for (int64_t j = 0; j < g_.rank; ++j) {
        const float* line = sums + (tap * g_.rank + j) * kSlice;
        for (int64_t c = 0; c < channels; ++c) {
          const int64_t channel = slice.first_channel + c;
          if (first) {
            g_.grad_s1[((slice.group * g_.rank + j) * g_.inputs + channel) * taps_ + tap] = line[c];
          } else {
            g_.grad_s2[((slice.group * g_.outputs + channel) * g_.rank + j) * taps_ + tap] =
                line[c];
          }
        }
      }
    }
  }

  const TwoSidedGradient& g_;
  const int64_t taps_;
  std::vector<Side<T>> sides_;
  std::vector<Slice> slices_;
  int64_t image_floats_ = 0;
  int64_t splits_ = 1;
  std::vector<int32_t> columns_by_one_;
  std::vector<int32_t> columns_by_stride_;
  std::vector<int32_t> pixels_by_one_;
  std::vector<int32_t> pixels_by_stride_;
};

}  // namespace

template <typename T>
void run(const TwoSidedGradient& gradient, const ImageView<const T>& grad,
         const ImageView<const T>& input) {
  GradientRunner<T>(gradient, grad, input).run();
}

template void run(const TwoSidedGradient&, const ImageView<const float>&,
                  const ImageView<const float>&);
template void run(const TwoSidedGradient&, const ImageView<const c10::BFloat16>&,
                  const ImageView<const c10::BFloat16>&);
template void run(const TwoSidedGradient&, const ImageView<const c10::Half>&,
                  const ImageView<const c10::Half>&);

}  // namespace sketchlayers::cpu
