#include "cpu/two_sided_conv.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <memory>

#include "cpu/scratch.h"
#include "cpu/tasks.h"

namespace sketchlayers::cpu {
namespace {

// What a task keeps beside the second-level cache's other guests.
constexpr int64_t kSourceFloats = 1 << 16;
constexpr int64_t kFeatureFloats = 1 << 15;
constexpr int64_t kMostPositions = 1024;
constexpr int64_t kFewestPositions = 64;
constexpr int64_t kChannelStep = 64;  // a multiple of kColumnStep
constexpr int64_t kOutputStep = 48;   // a multiple of kColumnStep, and of the rows of a block
constexpr int64_t kMostFloats = int64_t{1} << 22;
constexpr int32_t kNoOffset[1] = {0};

// The least and the largest of the taps' offsets, and one past what they read in a row.
struct Reach {
  int64_t first_row = 0;
  int64_t last_row = 0;
  int64_t first_column = 0;
  int64_t last_column = 0;

  explicit Reach(const Sampling& sampling) {
    for (size_t i = 0; i < sampling.taps.size(); ++i) {
      const Tap& tap = sampling.taps[i];
      first_row = i == 0 ? tap.row : std::min(first_row, tap.row);
      last_row = i == 0 ? tap.row : std::max(last_row, tap.row);
      first_column = i == 0 ? tap.column : std::min(first_column, tap.column);
      last_column = i == 0 ? tap.column : std::max(last_column, tap.column);
    }
  }
};

// How the source grids of a tile of `rows` target rows lie in a buffer. All rows of a grid share
// one pitch with the target's tile, so that a tap is an offset.
class Layout {
 public:
  Layout(const Sampling& sampling, int64_t rows) : sampling_(sampling), reach_(sampling) {
    const int64_t needed = sampling.target.columns + reach_.last_column - reach_.first_column;
    int64_t shared = needed;  // zeros at the end of a row serve as those at the start of the next
    for (const ImageGrid& grid : sampling.sources) {
      const int64_t before = std::max<int64_t>(0, -reach_.first_column);
      const int64_t after =
          std::max<int64_t>(0, sampling.target.columns + reach_.last_column - grid.columns);
      shared = std::min({shared, before, after});
    }
    if (sampling.sources.empty()) shared = 0;
    pitch_ = std::max(needed - shared, sampling.target.columns);
    grid_rows_ = rows + reach_.last_row - reach_.first_row;
    grid_floats_ = grid_rows_ * pitch_;
    const int64_t grids = static_cast<int64_t>(sampling.sources.size());
    channel_ = whole_steps(grids * grid_floats_ + needed - pitch_ + kColumnStep);
    columns_ = whole_steps((rows - 1) * pitch_ + sampling.target.columns);
    for (const Tap& tap : sampling.taps) {
      filter_offsets_.push_back(static_cast<int32_t>(tap.filter));
      source_offsets_.push_back(static_cast<int32_t>(tap.source * grid_floats_ +
                                                     (tap.row - reach_.first_row) * pitch_ +
                                                     tap.column - reach_.first_column));
    }
  }

  int64_t pitch() const { return pitch_; }
  int64_t channel() const { return channel_; }  // floats of a source channel
  int64_t columns() const { return columns_; }  // floats of a target channel
  int64_t taps() const { return static_cast<int64_t>(sampling_.taps.size()); }
  const int32_t* filter_offsets() const { return filter_offsets_.data(); }
  const int32_t* source_offsets() const { return source_offsets_.data(); }

  Window window(const ImageGrid& grid, int64_t first_target_row) const {
    return {first_target_row + reach_.first_row,
            grid_rows_,
            reach_.first_column,
            pitch_,
            grid.rows,
            grid.columns,
            sampling_.target.columns + reach_.last_column};
  }

  template <typename T>
  void pack(const ImageView<const T>& image, int64_t channels, int64_t first_row, float* out,
            float* pixels) const {
    float* target = out;
    for (const ImageGrid& grid : sampling_.sources) {
      pack_window(image.grid(grid, sampling_.source_row_step, sampling_.source_column_step),
                  channels, window(grid, first_row), target, channel_, pixels);
      target += grid_floats_;
    }
    const int64_t packed = target - out;
    for (int64_t c = 0; c < channels; ++c) {
      std::fill(out + c * channel_ + packed, out + (c + 1) * channel_, 0.0f);
    }
  }

 private:
  const Sampling& sampling_;
  Reach reach_;
  int64_t pitch_;
  int64_t grid_rows_;
  int64_t grid_floats_;
  int64_t channel_;
  int64_t columns_;
  std::vector<int32_t> filter_offsets_;
  std::vector<int32_t> source_offsets_;
};

// One tap that reads what it writes, of images without gaps: buffers could be the images.
bool is_pointwise(const Sampling& sampling) {
  return sampling.taps.size() == 1 && sampling.taps[0].row == 0 && sampling.taps[0].column == 0 &&
         sampling.source_row_step == 1 && sampling.source_column_step == 1 &&
         sampling.sources[0].columns == sampling.target.columns &&
         sampling.sources[0].rows == sampling.target.rows;
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows of a tile: as many as stay in cache, in tiles of equal size, enough for all threads.
int64_t tile_rows(const TwoSidedConv& conv, const Sampling& sampling, bool pointwise) {
  const int64_t rows = sampling.target.rows;
  const int64_t pitch = Layout(sampling, 1).pitch();
  const int64_t positions =
      std::clamp<int64_t>(kFeatureFloats / (2 * conv.rank), kFewestPositions, kMostPositions);
  const int64_t most = std::clamp<int64_t>(positions / pitch, 1, rows);
  const int64_t threads = at::get_num_threads();
  const int64_t others = conv.images * conv.groups;
  const int64_t fewest = divide_up(rows, most);
  // Cutting further costs the rows that neighbouring tiles both need.
  const Reach reach(sampling);
  const double halo = 0.3 * static_cast<double>(reach.last_row - reach.first_row);
  int64_t best = fewest;
  double best_cost = 0;
  for (int64_t tiles = fewest; tiles <= std::min(rows, fewest * 2 + threads); ++tiles) {
    const int64_t size = divide_up(rows, tiles);
    const double cost =
        static_cast<double>(divide_up(others * divide_up(rows, size), threads)) *
        (static_cast<double>(whole_steps(size * pitch)) + halo * static_cast<double>(pitch));
    if (tiles == fewest || cost < 0.97 * best_cost) {
      best = tiles;
      best_cost = cost;
    }
  }
  int64_t size = divide_up(rows, best);
  if (pointwise && pitch == 1) size = std::min(rows, divide_up(size, kColumnStep) * kColumnStep);
  return size;
}

struct Tile {
  int64_t image;
  int64_t group;
  int64_t first_row;
  int64_t rows;
};

template <typename T>
class Runner {
 public:
  Runner(const TwoSidedConv& conv, const Sampling& sampling, const ImageView<const T>& input,
         const ImageView<T>& output)
      : conv_(conv),
        sampling_(sampling),
        input_(input),
        output_(
            output.grid(sampling.target, sampling.target_row_step, sampling.target_column_step)),
        pointwise_(is_pointwise(sampling)),
        tile_rows_(tile_rows(conv, sampling, pointwise_)),
        layout_(sampling, tile_rows_) {
    const int64_t channels = kSourceFloats / layout_.channel() / kChannelStep * kChannelStep;
    channel_chunk_ = std::min(std::max(channels, kChannelStep), whole_steps(conv.inputs));
  }

  void run() const {
    const int64_t tiles = divide_up(sampling_.target.rows, tile_rows_);
    const int64_t count = conv_.images * conv_.groups * tiles;
    const auto tile = [&](int64_t i) {
      const int64_t first = i % tiles * tile_rows_;
      return Tile{i / tiles / conv_.groups, i / tiles % conv_.groups, first,
                  std::min(tile_rows_, sampling_.target.rows - first)};
    };
    const int64_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
    if (count >= threads) {
      run_tasks(count, [&](int64_t i) {
        float* scratch = Scratch::get(feature_floats() + work_floats());
        float* work = scratch + feature_floats();
        features(tile(i), 0, conv_.rank, scratch, work);
        outputs(tile(i), 0, conv_.outputs, scratch, work);
      });
    } else {
      run_shared(count, threads, tile);
    }
  }

 private:
  // Few tiles: threads share each one's features, first by rows of them, then by outputs.
  template <typename TileAt>
  void run_shared(int64_t count, int64_t threads, const TileAt& tile) const {
    const std::unique_ptr<float[]> shared(new float[static_cast<size_t>(count * feature_floats())]);
    const auto split = [&](int64_t size, int64_t step, const auto& body) {
      const int64_t parts = std::min(divide_up(size, step), 2 * threads);
      const int64_t part = divide_up(divide_up(size, parts), step) * step;
      const int64_t slices = divide_up(size, part);
      run_tasks(count * slices, [&](int64_t i) {
        const int64_t first = i % slices * part;
        body(tile(i / slices), shared.get() + i / slices * feature_floats(), first,
             std::min(size, first + part));
      });
    };
    split(conv_.rank, 1, [&](const Tile& t, float* features, int64_t first, int64_t last) {
      this->features(t, first, last, features, Scratch::get(work_floats()));
    });
    split(conv_.outputs, kOutputStep,
          [&](const Tile& t, float* features, int64_t first, int64_t last) {
            outputs(t, first, last, features, Scratch::get(work_floats()));
          });
  }

  int64_t feature_floats() const { return conv_.rank * (layout_.columns() + layout_.channel()); }
  int64_t sign_floats() const { return conv_.rank * std::max(channel_chunk_, kOutputStep); }
  int64_t filter_floats() const { return conv_.rank * kOutputStep * conv_.positions; }
  int64_t work_floats() const {
    const int64_t source = channel_chunk_ * (layout_.channel() + kColumnStep);
    const int64_t target = kOutputStep * layout_.columns() + filter_floats();
    return sign_floats() + std::max(source, target);
  }

  // [F1 * x; B x] for rows [first, last) of them: the first (rank, columns), the second (rank,
  // channel) in the layout of the sources.
  void features(const Tile& tile, int64_t first, int64_t last, float* features, float* work) const {
    const VectorKernels& kernels = vector_kernels();
    const int64_t columns = tile_columns(tile);
    float* signs = work;
    float* buffer = signs + sign_floats();
    float* pixels = buffer + channel_chunk_ * layout_.channel();
    float* mixed = features + conv_.rank * layout_.columns();
    const int64_t rows = last - first;
    for (int64_t c = 0; c < conv_.inputs; c += channel_chunk_) {
      const int64_t channels = std::min(channel_chunk_, conv_.inputs - c);
      const auto [source, channel] = this->source(tile, c, channels, columns, buffer, pixels);
      const Product filtered{conv_.first.data + tile.group * conv_.first.group +
                                 first * conv_.first.row + c * conv_.first.channel,
                             conv_.first.row,
                             conv_.first.channel,
                             layout_.filter_offsets(),
                             source,
                             channel,
                             layout_.source_offsets(),
                             channels,
                             layout_.taps()};
      kernels.product(&filtered, 1, rows, columns, nullptr, features + first * layout_.columns(),
                      layout_.columns(), c > 0);
      if (layout_.taps() == 0) continue;
      for (int64_t j = first; j < last; ++j) {
        kernels.expand_signs(conv_.input_signs.row(tile.group, j), c, channels,
                             conv_.input_signs.magnitude, signs + (j - first) * channel_chunk_);
      }
      const Product signed_sums{signs,   channel_chunk_, 1,        kNoOffset, source,
                                channel, kNoOffset,      channels, 1};
      kernels.product(&signed_sums, 1, rows, pointwise_ ? columns : layout_.channel(), nullptr,
                      mixed + first * layout_.channel(), layout_.channel(), c > 0);
    }
  }

  struct Source {
    const float* data;
    int64_t channel;
  };

  // The images themselves where they can be read in whole steps, else a packed copy.
  Source source(const Tile& tile, int64_t c, int64_t channels, int64_t columns, float* buffer,
                float* pixels) const {
    const ImageView<const T> image = input_.at(tile.image, tile.group * conv_.inputs + c);
    if constexpr (std::is_same_v<T, float>) {
      if (pointwise_ && contiguous_rows(image, sampling_.target.columns) &&
          columns == tile.rows * sampling_.target.columns) {
        return {image.data + tile.first_row * image.row, image.channel};
      }
    }
    layout_.pack(image, channels, tile.first_row, buffer, pixels);
    return {buffer, layout_.channel()};
  }

  template <typename View>
  static bool contiguous_rows(const View& view, int64_t columns) {
    return (view.column == 1 || columns == 1) && view.row == columns;
  }

  // The last tile may have fewer rows than the others.
  int64_t tile_columns(const Tile& tile) const {
    return whole_steps((tile.rows - 1) * layout_.pitch() + sampling_.target.columns);
  }

  // y for outputs [first, last), first a multiple of kColumnStep.
  void outputs(const Tile& tile, int64_t first, int64_t last, const float* features,
               float* work) const {
    const int64_t columns = tile_columns(tile);
    const float* mixed = features + conv_.rank * layout_.columns();
    float* signs = work;
    float* filters = signs + sign_floats();
    float* target = filters + filter_floats();
    for (int64_t o = first; o < last; o += kOutputStep) {
      const int64_t rows = std::min(kOutputStep, last - o);
      for (int64_t j = 0; j < conv_.rank; ++j) {
        vector_kernels().expand_signs(conv_.output_signs.row(tile.group, j), o, rows,
                                      conv_.output_signs.magnitude, signs + j * kOutputStep);
      }
      const Filters second = gather_filters(tile, o, rows, filters);
      const Product parts[2] = {
          {signs, 1, kOutputStep, kNoOffset, features, layout_.columns(), kNoOffset, conv_.rank, 1},
          {second.data, second.row, second.channel, layout_.filter_offsets(), mixed,
           layout_.channel(), layout_.source_offsets(), conv_.rank, layout_.taps()}};
      const int64_t channel = tile.group * conv_.outputs + o;
      const float* bias = conv_.bias ? conv_.bias + channel : nullptr;
      const ImageView<T> image = output_.at(tile.image, channel);
      if constexpr (std::is_same_v<T, float>) {
        if (contiguous_rows(image, layout_.pitch()) &&
            layout_.pitch() == sampling_.target.columns && columns == tile.rows * layout_.pitch()) {
          vector_kernels().product(parts, 2, rows, columns, bias,
                                   image.data + tile.first_row * image.row, image.channel, false);
          continue;
        }
      }
      vector_kernels().product(parts, 2, rows, columns, bias, target, layout_.columns(), false);
      store_window(target, layout_.columns(), layout_.pitch(), rows, image, tile.first_row,
                   tile.rows, sampling_.target.columns);
    }
  }

  // Filters whose rows lie closer than their channels are copied together: strides of a power of
  // two would else share a few lines of the cache.
  Filters gather_filters(const Tile& tile, int64_t o, int64_t rows, float* out) const {
    const Filters& second = conv_.second;
    const float* data = second.data + tile.group * second.group + o * second.row;
    if (second.row >= second.channel) return {data, 0, second.row, second.channel};
    const int64_t length = rows * conv_.positions;
    for (int64_t j = 0; j < conv_.rank; ++j) {
      std::copy_n(data + j * second.channel, length, out + j * length);
    }
    return {out, 0, conv_.positions, length};
  }

  const TwoSidedConv& conv_;
  const Sampling& sampling_;
  const ImageView<const T> input_;
  const ImageView<T> output_;
  const bool pointwise_;
  const int64_t tile_rows_;
  const Layout layout_;
  int64_t channel_chunk_;
};

}  // namespace

bool fits(const TwoSidedConv& conv, const Sampling& sampling) {
  return Layout(sampling, 1).channel() * std::max(conv.rank, kChannelStep) <= kMostFloats;
}

template <typename T>
void run(const TwoSidedConv& conv, const Sampling& sampling, const ImageView<const T>& input,
         const ImageView<T>& output) {
  if (conv.images * sampling.target.rows * sampling.target.columns == 0) return;
  Runner<T>(conv, sampling, input, output).run();
}

template void run(const TwoSidedConv&, const Sampling&, const ImageView<const float>&,
                  const ImageView<float>&);
template void run(const TwoSidedConv&, const Sampling&, const ImageView<const c10::BFloat16>&,
                  const ImageView<c10::BFloat16>&);
template void run(const TwoSidedConv&, const Sampling&, const ImageView<const c10::Half>&,
                  const ImageView<c10::Half>&);

}  // namespace sketchlayers::cpu
