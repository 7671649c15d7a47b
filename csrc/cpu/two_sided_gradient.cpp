#include "cpu/two_sided_gradient.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>
#include <c10/util/Half.h>

#include <limits>
#include <memory>

#include "cpu/tasks.h"

namespace sketchlayers::cpu {
namespace {

constexpr int64_t kSlice = 64;            // channels of one task's part of a gradient
constexpr int64_t kPixels = 512;          // of a packed tile: with kSlice channels, 128 KiB
constexpr int64_t kGroupPixels = 64;      // of small images that are packed together
constexpr int64_t kWaveFloats = 1 << 18;  // of the features that exist at one time
constexpr int64_t kMostOffset = std::numeric_limits<int32_t>::max();  // between pairs

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
  float* result;
  ImageView<const T> pixels;  // x for dS1, dy for dS2
  int64_t channels;           // of a group
  int64_t blocks;             // of channels, each with features of its own
  bool pixels_are_inputs;     // of the taps that connect them with the features
  ConvAxis rows;
  ConvAxis columns;
  TwoSidedConv mix;  // makes the features
  Sampling sampling;
  ImageView<const T> featured;  // dy for dS1, x for dS2

  int64_t image_rows() const { return pixels_are_inputs ? rows.input : rows.output; }
  int64_t image_columns() const { return pixels_are_inputs ? columns.input : columns.output; }
  int64_t taps() const { return rows.kernel * columns.kernel; }
  int64_t features() const { return mix.features(); }
  int64_t block_features() const { return features() / blocks; }
  int64_t block_channels() const { return channels / blocks; }
  int64_t image_pixels() const { return image_rows() * image_columns(); }
  // Small images are packed several at a time: a tap's product over one alone would be short. Not
  // more than that takes: images summed one by one cancel better over a batch.
  // Nor where features are so many, far beyond a padded image, that 32-bit offsets are too short.
  int64_t group() const {
    if (feature_floats() > kWaveFloats) return 1;
    return std::max<int64_t>(1, kGroupPixels / image_pixels());
  }
  // Features lie row by row, as the sampling that makes them has them.
  int64_t feature_floats() const {
    return whole_steps(sampling.target.rows * sampling.target.columns);
  }
};

// For one tap, where each pair of a feature and a pixel lies that it connects, image by image.
struct Pairs {
  std::vector<int32_t> features;
  std::vector<int32_t> pixels;
  int64_t in_image = 0;
};

template <typename T>
class GradientRunner {
 public:
  GradientRunner(const TwoSidedGradient& g, const ImageView<const T>& grad,
                 const ImageView<const T>& input)
      : images_(g.images), groups_(g.groups) {
    const auto mix = [&](int64_t channels, const Branch& branch) {
      return TwoSidedConv{g.images, g.groups, channels, 0, g.rows.kernel * g.columns.kernel,
                          {branch}, nullptr};
    };
    const auto pixel_by_pixel = [](int64_t pixels) {
      return forward_sampling(identity_axis(pixels), identity_axis(1));
    };
    if (g.grad_s1) {
      sides_.push_back({g.grad_s1, input, g.inputs, g.blocks, true, g.rows, g.columns,
                        mix(g.outputs, g.first), pixel_by_pixel(g.rows.output * g.columns.output),
                        grad.in_one_column()});
    }
    if (g.grad_s2 && g.second.in.taps) {
      sides_.push_back({g.grad_s2, grad, g.outputs, g.blocks, false, identity_axis(g.rows.output),
                        identity_axis(g.columns.output), mix(g.inputs, g.second),
                        forward_sampling(g.rows, g.columns), input});
    } else if (g.grad_s2) {
      sides_.push_back({g.grad_s2, grad, g.outputs, g.blocks, false, g.rows, g.columns,
                        mix(g.inputs, g.second), pixel_by_pixel(g.rows.input * g.columns.input),
                        input.in_one_column()});
    }
    for (const Side<T>& side : sides_) {
      for (int64_t block = 0; block < g.groups * g.blocks; ++block) {
        for (int64_t c = 0; c < side.block_channels(); c += kSlice) {
          slices_.push_back({&side, block / g.blocks, block % g.blocks, c});
        }
      }
      image_floats_ += g.groups * side.features() * side.feature_floats();
      most_sums_ = std::max(most_sums_, side.taps() * side.block_features() * kSlice);
    }
    wave_ = std::clamp<int64_t>(kWaveFloats / std::max<int64_t>(1, image_floats_), 1, images_);
    for (const Side<T>& side : sides_) pairs_.push_back(connect(side));
    for (const Side<T>& side : sides_) columns_.push_back(follow_columns(side));
  }

  void run() {
    // Enough tasks for all threads; more would only be more to add up.
    const int64_t slices = static_cast<int64_t>(slices_.size());
    splits_ = std::clamp<int64_t>(ceil_divide(4 * at::get_num_threads(), slices), 1, wave_);
    if (at::get_num_threads() == 1) splits_ = 1;
    const int64_t part = most_sums_;
    const std::unique_ptr<float[]> sums(new float[static_cast<size_t>(slices * splits_ * part)]());
    const std::unique_ptr<float[]> features(new float[static_cast<size_t>(wave_ * image_floats_)]);
    for (int64_t first = 0; first < images_; first += wave_) {
      const int64_t images = std::min(wave_, images_ - first);
      make_features(first, images, features.get());
      run_tasks(slices * splits_, [&](int64_t i) {
        const Slice& slice = slices_[static_cast<size_t>(i % slices)];
        const int64_t group = slice.side->group();
        for (int64_t image = i / slices * group; image < images; image += splits_ * group) {
          accumulate(slice, first + image, std::min(group, images - image),
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
    int64_t block;
    int64_t first_in_block;
    int64_t first_channel() const { return block * side->block_channels() + first_in_block; }
    int64_t channels() const { return std::min(kSlice, side->block_channels() - first_in_block); }
  };

  // Where the features of a side begin among those of one image.
  int64_t feature_offset(const Side<T>& side, int64_t group) const {
    int64_t offset = group * side.features() * side.feature_floats();
    for (const Side<T>& earlier : sides_) {
      if (&earlier == &side) break;
      offset += groups_ * earlier.features() * earlier.feature_floats();
    }
    return offset;
  }

  void make_features(int64_t first_image, int64_t images, float* features) {
    for (Side<T>& side : sides_) {
      side.mix.images = images;
      const ImageView<float> out{features + feature_offset(side, 0), image_floats_,
                                 side.feature_floats(), side.sampling.target.columns, 1};
      run_features(side.mix, side.sampling, side.featured.at(first_image, 0), out);
    }
  }

  // Adds what some images contribute to sums[tap][j][channel of the slice].
  void accumulate(const Slice& slice, int64_t image, int64_t images, const float* features,
                  float* sums) const {
    const Side<T>& side = *slice.side;
    const int64_t channel = slice.group * side.channels + slice.first_channel();
    const int64_t height = std::max<int64_t>(1, kPixels / side.image_columns());
    const int64_t room =
        std::max(std::min(height, side.image_rows()) * side.image_columns(), kPixels) + kColumnStep;
    float* buffer = Scratch::get(room * kSlice + kColumnStep * (room + kSlice));
    float* line = buffer + room * kSlice;
    const float* own = features + feature_offset(side, slice.group) +
                       slice.block * side.block_features() * side.feature_floats();
    if (side.group() > 1) {
      for (int64_t i = 0; i < images; ++i) {
        pack_pixels(side.pixels.at(image + i, channel), 0, side.image_pixels(), slice.channels(),
                    buffer + i * side.image_pixels() * kSlice, line);
      }
      add_pairs(slice, images, own, buffer, sums);
      return;
    }
    const ImageView<const T> view = side.pixels.at(image, channel);
    for (int64_t begin = 0; begin < side.image_rows(); begin += height) {
      const int64_t end = std::min(begin + height, side.image_rows());
      pack_pixels(view, begin * side.image_columns(), (end - begin) * side.image_columns(),
                  slice.channels(), buffer, line);
      for (int64_t i = 0; i < side.rows.kernel; ++i) {
        for (int64_t j = 0; j < side.columns.kernel; ++j) {
          float* target = sums + (i * side.columns.kernel + j) * side.block_features() * kSlice;
          add_tap(side, i, j, begin, end, own, buffer, whole_steps(slice.channels()), target);
        }
      }
    }
  }

  // The pairs of every tap for a group of images; none where images are taken by rows.
  std::vector<Pairs> connect(const Side<T>& side) const {
    std::vector<Pairs> taps;
    if (side.group() == 1) return taps;
    const int64_t images = std::min(side.group(), wave_);
    // Features of two images or more are at most kWaveFloats, as are those of one that is grouped.
    TORCH_INTERNAL_ASSERT((images - 1) * image_floats_ + side.feature_floats() <= kMostOffset &&
                          images * side.image_pixels() * kSlice <= kMostOffset);
    const ConvAxis& rows = side.rows;
    const ConvAxis& columns = side.columns;
    for (int64_t i = 0; i < rows.kernel; ++i) {
      const Range y = readers(rows, i, 0, rows.input);
      for (int64_t j = 0; j < columns.kernel; ++j) {
        const Range x = readers(columns, j, 0, columns.input);
        Pairs pairs;
        pairs.in_image = y.size() * x.size();
        for (int64_t image = 0; image < images; ++image) {
          for (int64_t row = y.first; row < y.last; ++row) {
            for (int64_t column = x.first; column < x.last; ++column) {
              const int64_t written = row * columns.output + column;
              const int64_t read =
                  input_position(rows, row, i) * columns.input + input_position(columns, column, j);
              const auto [feature, pixel] =
                  side.pixels_are_inputs ? std::pair(written, read) : std::pair(read, written);
              pairs.features.push_back(static_cast<int32_t>(image * image_floats_ + feature));
              pairs.pixels.push_back(
                  static_cast<int32_t>((image * side.image_pixels() + pixel) * kSlice));
            }
          }
        }
        taps.push_back(std::move(pairs));
      }
    }
    return taps;
  }

  // From one output's column to the next, the features and the pixels of a row.
  static Pairs follow_columns(const Side<T>& side) {
    Pairs steps;
    const int64_t read = side.columns.stride;
    TORCH_INTERNAL_ASSERT(side.columns.output * read <= kMostOffset / kSlice);
    for (int64_t x = 0; x < side.columns.output; ++x) {
      steps.features.push_back(static_cast<int32_t>(side.pixels_are_inputs ? x : x * read));
      steps.pixels.push_back(
          static_cast<int32_t>((side.pixels_are_inputs ? x * read : x) * kSlice));
    }
    return steps;
  }

  void add_pairs(const Slice& slice, int64_t images, const float* features, const float* pixels,
                 float* sums) const {
    const Side<T>& side = *slice.side;
    const std::vector<Pairs>& taps = pairs_[static_cast<size_t>(slice.side - sides_.data())];
    for (size_t tap = 0; tap < taps.size(); ++tap) {
      const Pairs& pairs = taps[tap];
      const int64_t count = pairs.in_image * images;
      if (count == 0) continue;
      const Product product{features,
                            side.feature_floats(),
                            0,
                            pairs.features.data(),
                            pixels,
                            0,
                            pairs.pixels.data(),
                            1,
                            count};
      const int64_t rows = side.block_features();
      vector_kernels().product(&product, 1, rows, whole_steps(slice.channels()), nullptr,
                               sums + static_cast<int64_t>(tap) * rows * kSlice, kSlice, true);
    }
  }

  // Pixels with their channels together, out[pixel][channel]; the last step may hold anything else.
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
    const ConvAxis& rows = side.rows;
    const ConvAxis& columns = side.columns;
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
    const Pairs& steps = columns_[static_cast<size_t>(&side - sides_.data())];
    const int64_t read = input_row * columns.input + input_column;
    const int64_t written = y.first * columns.output + x.first;
    const int64_t read_step = rows.stride * columns.input;
    const int64_t packed = begin * side.image_columns();
    const Product product{features + (own ? written : read),
                          side.feature_floats(),
                          own ? columns.output : read_step,
                          steps.features.data(),
                          pixels + ((own ? read : written) - packed) * kSlice,
                          (own ? read_step : columns.output) * kSlice,
                          steps.pixels.data(),
                          y.size(),
                          x.size()};
    vector_kernels().product(&product, 1, side.block_features(), channels, nullptr, target, kSlice,
                             true);
  }

  // dS1 (features, channels, taps), dS2 (channels, features, taps).
  void store(const Slice& slice, const float* sums) const {
    const Side<T>& side = *slice.side;
    const bool first = side.pixels_are_inputs;
    const int64_t taps = side.taps();
    const int64_t feature = first ? side.channels * taps : taps;
    const int64_t features = side.block_features();
    const int64_t channel = first ? taps : features * taps;
    float* result = side.result + slice.group * features * side.channels * taps +
                    slice.first_channel() * channel;
    for (int64_t tap = 0; tap < taps; ++tap) {
      for (int64_t j = 0; j < features; ++j) {
        const float* line = sums + (tap * features + j) * kSlice;
        for (int64_t c = 0; c < slice.channels(); ++c) {
          result[j * feature + c * channel + tap] = line[c];
        }
      }
    }
  }

  const int64_t images_;
  const int64_t groups_;
  std::vector<Side<T>> sides_;
  std::vector<Slice> slices_;
  std::vector<std::vector<Pairs>> pairs_;  // of each side, for each tap
  int64_t image_floats_ = 0;
  int64_t most_sums_ = 0;
  int64_t wave_ = 1;  // images whose features exist at one time
  int64_t splits_ = 1;
  std::vector<Pairs> columns_;  // of each side
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
