#include "cpu/panel_conv.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu/allocate.h"
#include "cpu/panel_operands.h"
#include "cpu/tasks.h"
#include "cpu/vector_kernels.h"

namespace sketchlayers::cpu {
namespace {

using c10::BFloat16;

constexpr int64_t kBlockPixels = 128;  // pixels whose outputs are made at a time
constexpr int64_t kBlockChannels = 64;
constexpr int64_t kPairRows = 16;  // pairs of channels that are transposed at a time

uint16_t* halves(float* memory) { return reinterpret_cast<uint16_t*>(memory); }
const BFloat16* numbers(const uint16_t* halves) {
  return reinterpret_cast<const BFloat16*>(halves);
}

// Floats for so many halves, in whole lines of the cache, with room for a step behind them.
int64_t room(int64_t halves) { return whole_steps(halves / 2 + kColumnStep); }

// A factor (taps down, taps across, rank, channels) and its signs as one matrix, (taps * rank +
// rank, channels): one row a feature.
at::Tensor stacked(const at::Tensor& by_tap, const at::Tensor& packed) {
  constexpr int64_t kRows = 8;  // of a task
  constexpr int64_t kSmall = 1 << 14;
  const int64_t rank = by_tap.size(2);
  const int64_t across = by_tap.size(1);
  const int64_t channels = by_tap.size(3);
  const int64_t filters = by_tap.size(0) * across * rank;
  const at::Tensor matrix = at::empty({filters + rank, channels}, by_tap.options());
  const auto* from = reinterpret_cast<const uint16_t*>(by_tap.const_data_ptr<BFloat16>());
  const at::IntArrayRef step = by_tap.strides();
  const at::Tensor signs = packed[0].contiguous();
  const auto* words = signs.const_data_ptr<int32_t>();
  auto* out = reinterpret_cast<uint16_t*>(matrix.mutable_data_ptr<BFloat16>());
  const auto fill = [&](int64_t feature) {
    uint16_t* row = out + feature * channels;
    if (feature < filters) {
      const int64_t tap = feature / rank;
      const uint16_t* first =
          from + tap / across * step[0] + tap % across * step[1] + feature % rank * step[2];
      for (int64_t c = 0; c < channels; ++c) row[c] = first[c * step[3]];
    } else {
      const int32_t* bits = words + (feature - filters) * signs.size(1);
      for (int64_t c = 0; c < channels; ++c) {
        const auto sign = static_cast<uint32_t>(bits[c / 32]) >> (c % 32) & 1u;
        row[c] = static_cast<uint16_t>(0x3f80u | sign << 15);
      }
    }
  };
  run_tasks(
      ceil_divide(filters + rank, kRows),
      [&](int64_t task) {
        const int64_t last = std::min(filters + rank, (task + 1) * kRows);
        for (int64_t feature = task * kRows; feature < last; ++feature) fill(feature);
      },
      /*small=*/matrix.numel() < kSmall);
  return matrix;
}

// The signs alone.
at::Tensor stacked(const at::Tensor& packed, int64_t channels, const at::TensorOptions& options) {
  return stacked(at::empty({1, 0, packed.size(1), channels}, options), packed);
}

at::Tensor input_factors(const SketchTensors& tensors) {
  return stacked(tensors.s1.permute({2, 3, 0, 1}), tensors.u2);
}

at::Tensor output_factors(const SketchTensors& tensors) {
  return stacked(tensors.s2.permute({2, 3, 1, 0}), tensors.u1);
}

// A right side packed once for all tasks, in panels of about as many columns.
class PackedMatrix {
 public:
  static constexpr int64_t kMostColumns = 256;

  PackedMatrix(const RightSide& right, int64_t depth, int64_t columns)
      : depth_(depth),
        width_(whole_steps(columns)),
        panel_width_(whole_steps(ceil_divide(width_, ceil_divide(width_, kMostColumns)))),
        memory_(at::empty({steps() * Panel::words(kPanelDepth, width_)},
                          at::TensorOptions().dtype(at::kInt))) {
    constexpr int64_t kSmall = 1 << 15;  // numbers
    run_tasks(
        panels() * steps(),
        [&](int64_t task) {
          const int64_t i = task / steps(), k = task % steps();
          panel(i, k).pack(right, k * kPanelDepth, first(i), columns);
        },
        /*small=*/depth * columns < kSmall);
  }

  int64_t width() const { return width_; }
  int64_t panels() const { return ceil_divide(width_, panel_width_); }
  int64_t first(int64_t i) const { return i * panel_width_; }
  int64_t width(int64_t i) const { return std::min(panel_width_, width_ - first(i)); }

  // sums (rows, width(i)) = left (rows, depth) times panel i.
  void multiply(int64_t i, const uint16_t* left, int64_t left_row, int64_t rows, float* sums,
                int64_t sums_row) const {
    for (int64_t k = 0; k < steps(); ++k) {
      panel(i, k).multiply(numbers(left) + k * kPanelDepth, left_row, rows, sums, sums_row, k > 0);
    }
  }

 private:
  int64_t steps() const { return ceil_divide(depth_, kPanelDepth); }
  Panel panel(int64_t i, int64_t k) const {
    auto* memory = reinterpret_cast<uint32_t*>(memory_.data_ptr<int32_t>());
    const int64_t before = Panel::words(kPanelDepth, steps() * first(i) + k * width(i));
    return {memory + before, std::min(kPanelDepth, depth_ - k * kPanelDepth), width(i)};
  }

  int64_t depth_;
  int64_t width_;
  int64_t panel_width_;
  at::Tensor memory_;
};

// One side of a convolution.
struct Images {
  Images(const at::Tensor& images, int64_t rows_, int64_t columns_)
      : data(reinterpret_cast<uint16_t*>(images.data_ptr<BFloat16>())),
        channels(images.size(1)),
        rows(rows_),
        columns(columns_),
        together(channels_together(images)) {}

  int64_t pixels() const { return rows * columns; }
  uint16_t* image(int64_t i) const { return data + i * channels * pixels(); }

  uint16_t* data;
  int64_t channels;
  int64_t rows;
  int64_t columns;
  bool together;
};

// The way from pixels to pixels through taps, forward or back.
struct Way {
  // The source position of a target position and a tap along an axis, or -1.
  using SourceOf = int64_t (*)(const ConvAxis& axis, int64_t target, int64_t tap);
  const ConvGeometry& geometry;
  SourceOf source_of;

  int64_t taps() const { return geometry.rows.kernel * geometry.columns.kernel; }
};

int64_t forward_source(const ConvAxis& axis, int64_t target, int64_t tap) {
  const int64_t source = input_position(axis, target, tap);
  return source < axis.input ? std::max<int64_t>(source, -1) : -1;
}

int64_t adjoint_source(const ConvAxis& axis, int64_t target, int64_t tap) {
  const int64_t distance = target + axis.padding - tap * axis.dilation;
  if (distance < 0 || distance % axis.stride != 0) return -1;
  const int64_t source = distance / axis.stride;
  return source < axis.output ? source : -1;
}

// Whole images, or rows of a target image.
struct PanelTile {
  int64_t first_image;
  int64_t images;
  int64_t first_row;
  int64_t rows;
};

// Source rows of a tile, and for every target pixel of an image and every tap the source pixel from
// the first of these rows on, or -1.
struct TileSources {
  int64_t first_row = 0;
  int64_t rows = 0;
  std::vector<int32_t> pixels;
};

// Source positions of some target positions, and every tap, along an axis.
std::vector<int32_t> sources_along(const ConvAxis& axis, Way::SourceOf source_of, int64_t first,
                                   int64_t count) {
  std::vector<int32_t> positions;
  for (int64_t target = first; target < first + count; ++target) {
    for (int64_t tap = 0; tap < axis.kernel; ++tap) {
      positions.push_back(static_cast<int32_t>(source_of(axis, target, tap)));
    }
  }
  return positions;
}

// With `rows_of_whole`, the number of rows of a source image, these are the source rows.
TileSources tile_sources(const Way& way, const PanelTile& tile, int64_t source_columns,
                         int64_t target_columns, int64_t rows_of_whole = 0) {
  const auto& [rows, columns] = std::tie(way.geometry.rows, way.geometry.columns);
  const auto down = sources_along(rows, way.source_of, tile.first_row, tile.rows);
  const auto across = sources_along(columns, way.source_of, 0, target_columns);
  TileSources result;
  int32_t first = 0;
  int32_t last = static_cast<int32_t>(rows_of_whole) - 1;
  if (rows_of_whole == 0) {
    last = *std::max_element(down.begin(), down.end());
    first = std::max(last, 0);
    for (const int32_t row : down) first = row < 0 ? first : std::min(first, row);
  }
  result.first_row = first;
  result.rows = last + 1 - first;
  result.pixels.resize(down.size() * across.size());
  int32_t* next = result.pixels.data();
  for (size_t y = 0; y < down.size(); y += static_cast<size_t>(rows.kernel)) {
    for (size_t x = 0; x < across.size(); x += static_cast<size_t>(columns.kernel)) {
      for (size_t i = y; i < y + static_cast<size_t>(rows.kernel); ++i) {
        const auto base = static_cast<int32_t>((down[i] - first) * source_columns);
        for (size_t j = x; j < x + static_cast<size_t>(columns.kernel); ++j) {
          *next++ = down[i] >= 0 && across[j] >= 0 ? base + across[j] : -1;
        }
      }
    }
  }
  return result;
}

// The tiles of a convolution.
class Tiling {
 public:
  // About `most` pixels a tile, and not fewer than `fewest` tiles where there are as many rows.
  Tiling(const Way& way, const Images& source, const Images& target, int64_t most, int64_t fewest)
      : way_(way),
        source_columns_(source.columns),
        target_columns_(target.columns),
        images_(way.geometry.images),
        rows_(target.rows),
        tile_images_(std::clamp<int64_t>(most / std::max(source.pixels(), target.pixels()), 1,
                                         ceil_divide(images_, fewest))) {
    const int64_t pieces =
        std::max(ceil_divide(target.pixels(), most), ceil_divide(fewest, images_));
    tile_rows_ = tile_images_ > 1 ? rows_ : ceil_divide(rows_, std::min(pieces, rows_));
    if (tile_rows_ < rows_) return;
    whole_ = tile_sources(way, tile(0), source_columns_, target_columns_, source.rows);
  }

  int64_t count() const { return ceil_divide(images_, tile_images_) * row_groups(); }

  // body(tile, its sources).
  template <typename Body>
  void with(int64_t i, const Body& body) const {
    if (row_groups() == 1) {
      body(tile(i), whole_);
    } else {
      body(tile(i), tile_sources(way_, tile(i), source_columns_, target_columns_));
    }
  }

 private:
  int64_t row_groups() const { return ceil_divide(rows_, tile_rows_); }
  PanelTile tile(int64_t i) const {
    const int64_t image = i / row_groups() * tile_images_;
    const int64_t row = i % row_groups() * tile_rows_;
    return {image, std::min(tile_images_, images_ - image), row, std::min(tile_rows_, rows_ - row)};
  }

  const Way& way_;
  int64_t source_columns_;
  int64_t target_columns_;
  int64_t images_;
  int64_t rows_;
  int64_t tile_images_;
  int64_t tile_rows_;
  TileSources whole_;  // of all images alike
};

// Features of target pixels from source pixels.
class Features {
 public:
  // `factors` are those of every tap and the signs, or only the signs.
  Features(const Way& way, const Images& source, const at::Tensor& factors, int64_t rank)
      : taps_(way.taps()),
        source_(source),
        rank_(rank),
        by_tap_(factors.size(0) - rank),
        first_({factors.const_data_ptr<BFloat16>(), nullptr, source.channels, true},
               source.channels, factors.size(0)) {}

  int64_t count() const { return taps_ * rank_ + (by_tap_ > 0 ? rank_ : 0); }
  int64_t row() const { return left_row(count()); }

  // So many pixels that what is made of them stays in the second-level cache.
  int64_t tile_pixels() const {
    constexpr int64_t kFloats = 1 << 16;
    return std::clamp<int64_t>(kFloats / std::max(first_.width(), row() / 2), 64, 1024);
  }

  // Of memory that make() needs for a tile; target pixels are those of an image.
  int64_t floats(const PanelTile& tile, const TileSources& sources, int64_t target_pixels) const {
    const int64_t source_pixels = tile.images * sources.rows * source_.columns;
    return room(tile.images * target_pixels * row()) + rows_floats(source_pixels) +
           turned_floats(source_pixels) + room(2 * source_pixels * first_.width()) +
           room(source_pixels * whole_steps(rank_));
  }

  // Rows of row() for the target pixels of a tile, image after image, in `floats` of memory.
  const uint16_t* make(const PanelTile& tile, const TileSources& sources, int64_t target_pixels,
                       float* floats) const {
    const int64_t source_pixels = sources.rows * source_.columns;
    const Memory own = memory(floats, tile.images * source_pixels, tile.images * target_pixels);
    make_sources(tile, sources.first_row, source_pixels, own);
    for (int64_t i = 0; i < tile.images; ++i) {
      const int64_t first = i * source_pixels;
      vector_kernels().gather_features(
          by_tap_ > 0 ? own.made + first * first_.width() : nullptr, first_.width(),
          own.mixed + first * whole_steps(rank_), whole_steps(rank_), sources.pixels.data(), taps_,
          rank_, target_pixels, own.wanted + i * target_pixels * row(), row());
    }
    return own.wanted;
  }

 private:
  struct Memory {
    uint16_t* wanted;  // Z
    uint16_t* rows;    // source pixels, where they do not lie so
    float* turned;     // some channels of them
    float* made;       // T
    uint16_t* mixed;   // its part of the signs, rounded
  };

  int64_t rows_floats(int64_t pixels) const {
    return reads_in_place() ? 0 : room(pixels * left_row(source_.channels));
  }
  int64_t turned_floats(int64_t pixels) const {
    return source_.together ? 0 : kPairRows * whole_steps(pixels);
  }
  Memory memory(float* next, int64_t source_pixels, int64_t target_pixels) const {
    const auto take = [&](int64_t floats) { return std::exchange(next, next + floats); };
    Memory own{};
    own.wanted = halves(take(room(target_pixels * row())));
    own.rows = halves(take(rows_floats(source_pixels)));
    own.turned = take(turned_floats(source_pixels));
    own.made = take(room(2 * source_pixels * first_.width()));
    own.mixed = halves(take(room(source_pixels * whole_steps(rank_))));
    return own;
  }

  bool reads_in_place() const {
    return source_.together && left_row(source_.channels) == source_.channels &&
           reinterpret_cast<uintptr_t>(source_.data) % (2 * kLineNumbers) == 0;
  }

  void make_sources(const PanelTile& tile, int64_t first_row, int64_t pixels,
                    const Memory& own) const {
    const int64_t total = tile.images * pixels;
    const uint16_t* left = own.rows;
    if (reads_in_place()) {
      left = source_.image(tile.first_image) + first_row * source_.columns * source_.channels;
    } else {
      for (int64_t i = 0; i < tile.images; ++i) {
        read_pixels(tile.first_image + i, first_row * source_.columns, pixels, own.turned,
                    own.rows + i * pixels * left_row(source_.channels));
      }
    }
    for (int64_t i = 0; i < first_.panels(); ++i) {
      first_.multiply(i, left, left_row(source_.channels), total, own.made + first_.first(i),
                      first_.width());
    }
    vector_kernels().round_rows(own.made + by_tap_, first_.width(), total, whole_steps(rank_),
                                own.mixed, whole_steps(rank_));
  }

  // Pixels of an image as rows of a left side.
  void read_pixels(int64_t image, int64_t first, int64_t count, float* turned,
                   uint16_t* out) const {
    const int64_t channels = source_.channels;
    const int64_t row = left_row(channels);
    for (int64_t p = 0; channels % kLineNumbers != 0 && p < count; ++p) {
      std::fill(out + p * row + channels, out + p * row + whole_lines(channels), uint16_t{0});
    }
    const uint16_t* data = source_.image(image);
    if (source_.together) {
      for (int64_t p = 0; p < count; ++p) {
        std::copy_n(data + (first + p) * channels, channels, out + p * row);
      }
      return;
    }
    auto* pairs = reinterpret_cast<uint32_t*>(turned);
    for (int64_t c = 0; c < channels; c += 2 * kPairRows) {
      const int64_t rows = std::min(kPairRows, (channels - c) / 2);
      for (int64_t i = 0; i < rows; ++i) {
        const uint16_t* upper = data + (c + 2 * i) * source_.pixels() + first;
        vector_kernels().interleave(upper, upper + source_.pixels(), count,
                                    pairs + i * whole_steps(count));
      }
      vector_kernels().transpose(turned, whole_steps(count), rows, count,
                                 reinterpret_cast<float*>(out + c), row / 2, /*padded=*/false);
    }
    if (channels % 2 == 0) return;
    const uint16_t* last = data + (channels - 1) * source_.pixels() + first;
    for (int64_t p = 0; p < count; ++p) out[p * row + channels - 1] = last[p];
  }

  int64_t taps_;
  Images source_;
  int64_t rank_;
  int64_t by_tap_;  // features of every tap
  PackedMatrix first_;
};

// Outputs of target pixels from their features, by rows of pixels or by rows of channels.
class Outputs {
 public:
  Outputs(const Images& target, const at::Tensor& factors, double scale, const float* bias)
      : target_(target),
        features_(factors.size(0)),
        scale_(static_cast<float>(scale)),
        bias_(bias) {
    if (target.together) {
      by_pixels_.emplace(
          RightSide{factors.const_data_ptr<BFloat16>(), nullptr, target.channels, false}, features_,
          target.channels);
    } else {
      by_channels_ = at::zeros({target.channels, left_row(features_)}, factors.options());
      by_channels_.narrow(1, 0, features_).copy_(factors.t());
    }
  }

  int64_t floats() const {
    const int64_t panel = target_.together ? 0 : Panel::words(features_, kBlockPixels);
    return panel + kBlockPixels * std::max(kBlockChannels, PackedMatrix::kMostColumns);
  }

  void write(const PanelTile& tile, const uint16_t* features, float* memory) const {
    const int64_t pixels = tile.rows * target_.columns;
    for (int64_t i = 0; i < tile.images; ++i) {
      uint16_t* image = target_.image(tile.first_image + i);
      for (int64_t p = 0; p < pixels; p += kBlockPixels) {
        const int64_t count = std::min(kBlockPixels, pixels - p);
        const int64_t first = tile.first_row * target_.columns + p;
        const uint16_t* rows = features + (i * pixels + p) * left_row(features_);
        if (target_.together) {
          write_pixels(rows, count, memory, image + first * target_.channels);
        } else {
          write_channels(rows, count, memory, image + first);
        }
      }
    }
  }

 private:
  void write_pixels(const uint16_t* features, int64_t count, float* sums, uint16_t* out) const {
    for (int64_t i = 0; i < by_pixels_->panels(); ++i) {
      const int64_t first = by_pixels_->first(i);
      const int64_t width = by_pixels_->width(i);
      by_pixels_->multiply(i, features, left_row(features_), count, sums, width);
      for (int64_t p = 0; p < count; ++p) {
        vector_kernels().to_bfloat16(sums + p * width, std::min(width, target_.channels - first),
                                     scale_, bias_ ? bias_ + first : nullptr,
                                     out + p * target_.channels + first);
      }
    }
  }

  void write_channels(const uint16_t* features, int64_t count, float* memory, uint16_t* out) const {
    const int64_t row = left_row(features_);
    const int64_t width = whole_steps(count);
    float* sums = memory + Panel::words(features_, kBlockPixels);
    const auto panel = [&](int64_t k) {
      return Panel(reinterpret_cast<uint32_t*>(memory) + Panel::words(k, width),
                   std::min(kPanelDepth, whole_lines(features_) - k), width);
    };
    for (int64_t k = 0; k < features_; k += kPanelDepth) {
      panel(k).pack({numbers(features), nullptr, row, true}, k, 0, count);
    }
    const auto* left = by_channels_.const_data_ptr<BFloat16>();
    float addend[kBlockPixels];
    for (int64_t first = 0; first < target_.channels; first += kBlockChannels) {
      const int64_t channels = std::min(kBlockChannels, target_.channels - first);
      for (int64_t k = 0; k < features_; k += kPanelDepth) {
        panel(k).multiply(left + first * row + k, row, channels, sums, width, k > 0);
      }
      for (int64_t c = 0; c < channels; ++c) {
        if (bias_) std::fill_n(addend, width, bias_[first + c]);
        vector_kernels().to_bfloat16(sums + c * width, count, scale_, bias_ ? addend : nullptr,
                                     out + (first + c) * target_.pixels());
      }
    }
  }

  Images target_;
  int64_t features_;
  float scale_;
  const float* bias_;
  std::optional<PackedMatrix> by_pixels_;
  at::Tensor by_channels_;  // a row for each channel
};

// The gradient of a factor: sums over target pixels of their features, all but the last ones, times
// the channels of other images there. Every part sums some tiles, so that the result does not
// depend on threads.
class ProductSums {
 public:
  ProductSums(const Images& other, int64_t feature_row, int64_t features, int64_t parts)
      : other_(other),
        feature_row_(feature_row),
        features_(features),
        width_(whole_steps(other.channels)),
        sums_(at::empty({parts, features, width_}, at::TensorOptions().dtype(at::kFloat))) {}

  static int64_t parts(const Tiling& tiles) { return std::min<int64_t>(tiles.count(), 8); }

  int64_t floats() const {
    return pair_rows() * kPanelDepth + room(2 * pair_rows() * left_row(kPanelDepth)) +
           Panel::words(kPanelDepth, width_);
  }

  // `first` of the part.
  void add(int64_t part, bool first, const PanelTile& tile, const uint16_t* features,
           float* memory) const {
    const int64_t columns = other_.columns;
    // Pixels of images that follow each other are like those of one.
    const bool merges = other_.together && tile.rows == other_.rows;
    const int64_t images = merges ? 1 : tile.images;
    const int64_t pixels = tile.rows * columns * (merges ? tile.images : 1);
    for (int64_t i = 0; i < images; ++i) {
      for (int64_t p = 0; p < pixels; p += kPanelDepth) {
        add_pixels(part, !first || i + p > 0, tile.first_image + i, tile.first_row * columns + p,
                   std::min(kPanelDepth, pixels - p), features + (i * pixels + p) * feature_row_,
                   memory);
      }
    }
  }

  // (features, channels)
  at::Tensor total() const { return sums_.sum(0).narrow(1, 0, other_.channels); }

 private:
  int64_t pair_rows() const { return ceil_divide(features_, 2); }

  void add_pixels(int64_t part, bool add, int64_t image, int64_t first, int64_t count,
                  const uint16_t* features, float* memory) const {
    const int64_t depth = left_row(count);
    float* pairs = memory;
    uint16_t* left = halves(pairs + pair_rows() * kPanelDepth);
    float* right =
        pairs + pair_rows() * kPanelDepth + room(2 * pair_rows() * left_row(kPanelDepth));
    vector_kernels().transpose(reinterpret_cast<const float*>(features), feature_row_ / 2, count,
                               pair_rows(), pairs, kPanelDepth, /*padded=*/true);
    for (int64_t i = 0; i < pair_rows(); ++i) {
      uint16_t* upper = left + 2 * i * depth;
      vector_kernels().separate(reinterpret_cast<const uint32_t*>(pairs) + i * kPanelDepth, count,
                                upper, upper + depth);
      std::fill(upper + count, upper + depth, uint16_t{0});
      std::fill(upper + depth + count, upper + 2 * depth, uint16_t{0});
    }
    const Panel panel(reinterpret_cast<uint32_t*>(right), count, width_);
    const uint16_t* data = other_.image(image) + first * (other_.together ? other_.channels : 1);
    panel.pack({numbers(data), nullptr, other_.together ? other_.channels : other_.pixels(),
                !other_.together},
               0, 0, other_.channels);
    panel.multiply(numbers(left), depth, features_,
                   sums_.data_ptr<float>() + part * features_ * width_, width_, add);
  }

  Images other_;
  int64_t feature_row_;
  int64_t features_;
  int64_t width_;
  at::Tensor sums_;
};

// A factor's gradient in the factor's type and format, from (taps * rank, channels) and with axes
// (taps, taps, rank, channels) in another order.
at::Tensor factor_gradient(const at::Tensor& total, const at::Tensor& factor, const Sketch& sketch,
                           at::IntArrayRef order) {
  const at::Tensor by_tap = total.view({sketch.kernel_h, sketch.kernel_w, sketch.rank, -1});
  const at::Tensor scaled =
      at::mul(by_tap.permute(order), at::Scalar(sketch.scale * sketch.u1_scale));
  return in_format(scaled.to(factor.scalar_type()), common_memory_format(factor, factor));
}

// Every tile's features, and what is made of them; parts of consecutive tiles in parallel.
void run_parts(const Tiling& tiling, int64_t parts, const Features& features,
               int64_t target_columns, const Outputs* outputs, const ProductSums* sums) {
  const int64_t work = std::max(outputs ? outputs->floats() : 0, sums ? sums->floats() : 0);
  run_tasks(parts, [&](int64_t part) {
    const int64_t first = tiling.count() * part / parts;
    for (int64_t i = first; i < tiling.count() * (part + 1) / parts; ++i) {
      tiling.with(i, [&](const PanelTile& tile, const TileSources& sources) {
        const int64_t pixels = tile.rows * target_columns;
        float* memory = Scratch::get(work + features.floats(tile, sources, pixels));
        const uint16_t* made = features.make(tile, sources, pixels, memory + work);
        if (outputs) outputs->write(tile, made, memory);
        if (sums) sums->add(part, i == first, tile, made, memory);
      });
    }
    end_products();
  });
}

}  // namespace

void conv_by_panels(const at::Tensor& input, const SketchTensors& tensors, const Sketch& sketch,
                    const ConvGeometry& geometry, const float* bias, const at::Tensor& output) {
  const Way way{geometry, forward_source};
  const Images source(input, geometry.rows.input, geometry.columns.input);
  const Images target(output, geometry.rows.output, geometry.columns.output);
  const Features features(way, source, input_factors(tensors), sketch.rank);
  const Outputs outputs(target, output_factors(tensors), sketch.scale * sketch.u1_scale, bias);
  const Tiling tiling(way, source, target, features.tile_pixels(), at::get_num_threads());
  run_parts(tiling, tiling.count(), features, target.columns, &outputs, nullptr);
}

LayerGradients conv_by_panels_backward(const at::Tensor& grad, const at::Tensor& input,
                                       const SketchTensors& tensors, const Sketch& sketch,
                                       const ConvGeometry& geometry,
                                       const std::array<bool, 3>& wanted) {
  constexpr int64_t kFewestTiles = 8;
  const Images inputs(input, geometry.rows.input, geometry.columns.input);
  const Images grads(grad, geometry.rows.output, geometry.columns.output);
  LayerGradients result{input.new_empty({0}), tensors.s1.new_empty({0}), tensors.s2.new_empty({0})};
  auto& [grad_input, grad_s1, grad_s2] = result;
  const int64_t by_tap = sketch.positions() * sketch.rank;
  if (wanted[0] || wanted[1]) {
    const Way way{geometry, adjoint_source};
    const at::Tensor factors = wanted[0] ? output_factors(tensors)
                                         : stacked(tensors.u1, sketch.out_channels, grad.options());
    const Features features(way, grads, factors, sketch.rank);
    const Tiling tiling(way, grads, inputs, features.tile_pixels(), kFewestTiles);
    std::optional<Outputs> outputs;
    if (wanted[0]) {
      grad_input = empty_result(input.sizes(), input.options(), input.suggest_memory_format());
      outputs.emplace(Images(grad_input, inputs.rows, inputs.columns), input_factors(tensors),
                      sketch.scale * sketch.u1_scale, nullptr);
    }
    std::optional<ProductSums> sums;
    const int64_t parts = ProductSums::parts(tiling);
    if (wanted[1]) sums.emplace(inputs, features.row(), by_tap, parts);
    run_parts(tiling, parts, features, inputs.columns, outputs ? &*outputs : nullptr,
              sums ? &*sums : nullptr);
    if (sums) grad_s1 = factor_gradient(sums->total(), tensors.s1, sketch, {2, 3, 0, 1});
  }
  if (wanted[2]) {
    const Way way{geometry, forward_source};
    const Features features(way, inputs, stacked(tensors.u2, sketch.in_channels, input.options()),
                            sketch.rank);
    const Tiling tiling(way, inputs, grads, features.tile_pixels(), kFewestTiles);
    const int64_t parts = ProductSums::parts(tiling);
    const ProductSums sums(grads, features.row(), by_tap, parts);
    run_parts(tiling, parts, features, grads.columns, nullptr, &sums);
    grad_s2 = factor_gradient(sums.total(), tensors.s2, sketch, {3, 2, 0, 1});
  }
  return result;
}

}  // namespace sketchlayers::cpu
