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
constexpr int64_t kOutputStep = 48;  // a multiple of kColumnStep, and of the rows of a block
constexpr int64_t kSignFloats = 1 << 16;
constexpr int64_t kMostFloats = int64_t{1} << 22;

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

// How the sources of a tile of `rows` target rows lie in memory. All rows share one pitch with the
// target's tile, so that a tap is an offset. Either packed, with zeros around every grid, or as the
// images themselves lie, when masks stand in for the zeros.
class Layout {
 public:
  Layout(const Sampling& sampling, int64_t rows, bool masked)
      : sampling_(sampling), masked_(masked), reach_(sampling) {
    const int64_t needed = sampling.target.columns + reach_.last_column - reach_.first_column;
    pitch_ = masked ? sampling.target.columns
                    : std::max(needed - shared_zeros(needed), sampling.target.columns);
    grid_rows_ = rows + reach_.last_row - reach_.first_row;
    grid_floats_ = grid_rows_ * pitch_;
    const int64_t grids = static_cast<int64_t>(sampling.sources.size());
    channel_ =
        whole_steps(grids * grid_floats_ + std::max<int64_t>(0, needed - pitch_) + kColumnStep);
    columns_ = whole_steps((rows - 1) * pitch_ + sampling.target.columns);
    for (const Tap& tap : sampling.taps) {
      filter_offsets_.push_back(static_cast<int32_t>(tap.filter));
      source_offsets_.push_back(
          static_cast<int32_t>(tap.source * grid_floats_ + (tap.row - reach_.first_row) * pitch_ +
                               tap.column - (masked ? 0 : reach_.first_column)));
    }
  }

  int64_t pitch() const { return pitch_; }
  int64_t channel() const { return channel_; }  // floats of a source channel
  int64_t columns() const { return columns_; }  // floats of a target channel
  int64_t taps() const { return static_cast<int64_t>(sampling_.taps.size()); }
  const int32_t* filter_offsets() const { return filter_offsets_.data(); }
  const int32_t* source_offsets() const { return source_offsets_.data(); }
  int64_t first_source_row(int64_t first_row) const { return first_row + reach_.first_row; }
  int64_t last_source_row(int64_t last_row) const { return last_row + reach_.last_row; }

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

  // Masks of all taps for target rows [first, last): mask[tap * steps + step].
  std::vector<uint16_t> masks(int64_t first, int64_t last) const {
    const ImageGrid& source = sampling_.sources[0];
    const int64_t steps = columns_ / kColumnStep;
    std::vector<uint16_t> result(static_cast<size_t>(taps() * steps), 0);
    for (int64_t t = 0; t < taps(); ++t) {
      const Tap& tap = sampling_.taps[static_cast<size_t>(t)];
      const int64_t begin = std::max<int64_t>(0, -tap.column);
      const int64_t end = std::min(sampling_.target.columns, source.columns - tap.column);
      for (int64_t row = first; row < last; ++row) {
        if (row + tap.row < 0 || row + tap.row >= source.rows) continue;
        const int64_t start = (row - first) * pitch_;
        for (int64_t i = start + begin; i < start + end;) {
          const int64_t bit = i % kColumnStep;
          const int64_t count = std::min(kColumnStep - bit, start + end - i);
          result[static_cast<size_t>(t * steps + i / kColumnStep)] |=
              static_cast<uint16_t>(((1u << count) - 1) << bit);
          i += count;
        }
      }
    }
    return result;
  }

 private:
  // Zeros at the end of a row serve as those at the start of the next.
  int64_t shared_zeros(int64_t needed) const {
    int64_t shared = sampling_.sources.empty() ? 0 : needed;
    for (const ImageGrid& grid : sampling_.sources) {
      const int64_t before = std::max<int64_t>(0, -reach_.first_column);
      const int64_t after =
          std::max<int64_t>(0, sampling_.target.columns + reach_.last_column - grid.columns);
      shared = std::min({shared, before, after});
    }
    return shared;
  }

  Window window(const ImageGrid& grid, int64_t first_target_row) const {
    return {first_source_row(first_target_row),
            grid_rows_,
            reach_.first_column,
            pitch_,
            grid.rows,
            grid.columns,
            sampling_.target.columns + reach_.last_column};
  }

  const Sampling& sampling_;
  const bool masked_;
  Reach reach_;
  int64_t pitch_;
  int64_t grid_rows_;
  int64_t grid_floats_;
  int64_t channel_;
  int64_t columns_;
  std::vector<int32_t> filter_offsets_;
  std::vector<int32_t> source_offsets_;
};

// Images that can be read where they lie: rows without gaps and of the target's size, and channels
// that do not all fall into the same lines of the cache.
template <typename T>
bool reads_in_place(const Sampling& sampling, const ImageView<const T>& input) {
  if (!std::is_same_v<T, float> || !vector_kernels().takes_masks) return false;
  if (sampling.sources.size() != 1) return false;
  constexpr int64_t kAliasing = 4096 / sizeof(float);
  const ImageGrid& source = sampling.sources[0];
  const bool contiguous = (input.column == 1 || source.columns == 1) && input.row == source.columns;
  return contiguous && sampling.source_row_step == 1 && sampling.source_column_step == 1 &&
         source.rows == sampling.target.rows && source.columns == sampling.target.columns &&
         (sampling.taps.size() == 1 || input.channel % kAliasing != 0);
}

// One tap that reads what it writes.
bool is_pointwise(const Sampling& sampling) {
  return sampling.taps.size() == 1 && sampling.taps[0].row == 0 && sampling.taps[0].column == 0 &&
         sampling.source_row_step == 1 && sampling.source_column_step == 1 &&
         sampling.sources[0].columns == sampling.target.columns &&
         sampling.sources[0].rows == sampling.target.rows;
}

// Rows of a tile: as many as stay in cache, in tiles of equal size, enough for all threads.
int64_t tile_rows(const TwoSidedConv& conv, const Sampling& sampling, bool masked) {
  const int64_t rows = sampling.target.rows;
  const int64_t pitch = Layout(sampling, 1, masked).pitch();
  const int64_t positions =
      std::clamp<int64_t>(kFeatureFloats / conv.features(), kFewestPositions, kMostPositions);
  const int64_t most = std::clamp<int64_t>(positions / pitch, 1, rows);
  const int64_t threads = at::get_num_threads();
  const int64_t others = conv.images * conv.groups;
  const int64_t fewest = ceil_divide(rows, most);
  // Cutting further costs the rows that neighbouring tiles both need.
  const Reach reach(sampling);
  const double halo = 0.3 * static_cast<double>(reach.last_row - reach.first_row);
  int64_t best = fewest;
  double best_cost = 0;
  for (int64_t tiles = fewest; tiles <= std::min(rows, fewest * 2 + threads); ++tiles) {
    const int64_t size = ceil_divide(rows, tiles);
    const double cost =
        static_cast<double>(ceil_divide(others * ceil_divide(rows, size), threads)) *
        (static_cast<double>(whole_steps(size * pitch)) + halo * static_cast<double>(pitch));
    if (tiles == fewest || cost < 0.97 * best_cost) {
      best = tiles;
      best_cost = cost;
    }
  }
  int64_t size = ceil_divide(rows, best);
  if (pitch == 1) size = std::min(rows, whole_steps(size));
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
  Runner(const TwoSidedConv& conv, const Sampling& sampling, const ImageView<const T>& input)
      : conv_(conv),
        sampling_(sampling),
        input_(input),
        pointwise_(is_pointwise(sampling)),
        in_place_(reads_in_place(sampling, input)),
        tile_rows_(tile_rows(conv, sampling, in_place_)),
        layout_(sampling, tile_rows_, in_place_),
        out_block_(conv.outputs) {
    int64_t in_signs = 1;  // floats of a channel's signs, and of an output's
    int64_t out_signs = 1;
    for (const Branch& branch : conv.branches) {
      in_signs = std::max(in_signs, sign_floats(branch, branch.in));
      out_signs = std::max(out_signs, sign_floats(branch, branch.out));
      numbers_ = std::max(numbers_, branch.features * positions(branch.out));
      out_block_ = std::min(out_block_, conv.outputs / branch.out_blocks);
    }
    channel_chunk_ =
        chunk(std::min(kSourceFloats / layout_.channel(), kSignFloats / in_signs), conv.inputs);
    output_chunk_ = chunk(std::min(kOutputStep, kSignFloats / out_signs), conv.outputs);
    signs_ = std::max(in_signs * channel_chunk_, out_signs * output_chunk_);
  }

  void run(const ImageView<T>& output) const {
    const ImageView<T> target =
        output.grid(sampling_.target, sampling_.target_row_step, sampling_.target_column_step);
    const int64_t count = tiles();
    const int64_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
    if (count >= threads) {
      run_tasks(count, [&](int64_t i) {
        float* scratch = Scratch::get(feature_floats() + work_floats());
        float* work = scratch + feature_floats();
        features(tile(i), 0, conv_.features(), scratch, work);
        outputs(tile(i), 0, conv_.outputs, scratch, work, target);
      });
    } else {
      run_shared(count, threads, target);
    }
  }

  void run_features(const ImageView<float>& output) const {
    const int64_t count = conv_.features();
    run_tasks(tiles(), [&](int64_t i) {
      const Tile t = tile(i);
      float* scratch = Scratch::get(feature_floats() + work_floats());
      features(t, 0, count, scratch, scratch + feature_floats());
      store_window(scratch, layout_.columns(), layout_.pitch(), count,
                   output.at(t.image, t.group * count), t.first_row, t.rows,
                   sampling_.target.columns);
    });
  }

 private:
  // Whole steps, at least one, of what there is.
  static int64_t chunk(int64_t wanted, int64_t size) {
    return std::min(std::max(wanted / kColumnStep, int64_t{1}) * kColumnStep, whole_steps(size));
  }
  int64_t positions(const Factor& factor) const { return factor.taps ? conv_.positions : 1; }
  int64_t sign_floats(const Branch& branch, const Factor& factor) const {
    return factor.signs.packed ? branch.features * positions(factor) : 0;
  }

  int64_t row_tiles() const { return ceil_divide(sampling_.target.rows, tile_rows_); }
  int64_t tiles() const { return conv_.images * conv_.groups * row_tiles(); }
  Tile tile(int64_t i) const {
    const int64_t first = i % row_tiles() * tile_rows_;
    const int64_t image = i / row_tiles();
    return {image / conv_.groups, image % conv_.groups, first,
            std::min(tile_rows_, sampling_.target.rows - first)};
  }

  // Few tiles: threads share each one's features, first by rows of them, then by outputs.
  void run_shared(int64_t count, int64_t threads, const ImageView<T>& target) const {
    const std::unique_ptr<float[]> shared(new float[static_cast<size_t>(count * feature_floats())]);
    const auto split = [&](int64_t size, int64_t step, const auto& body) {
      const int64_t parts = std::min(ceil_divide(size, step), 2 * threads);
      const int64_t part = ceil_divide(ceil_divide(size, parts), step) * step;
      const int64_t slices = ceil_divide(size, part);
      run_tasks(count * slices, [&](int64_t i) {
        const int64_t first = i % slices * part;
        body(tile(i / slices), shared.get() + i / slices * feature_floats(), first,
             std::min(size, first + part));
      });
    };
    split(conv_.features(), 1, [&](const Tile& t, float* features, int64_t first, int64_t last) {
      this->features(t, first, last, features, Scratch::get(work_floats()));
    });
    split(conv_.outputs, kColumnStep,
          [&](const Tile& t, float* features, int64_t first, int64_t last) {
            outputs(t, first, last, features, Scratch::get(work_floats()), target);
          });
  }

  // Features after taps lie as the target does, those before as the source.
  int64_t feature_row(const Branch& branch) const {
    return branch.in.taps || pointwise_ ? layout_.columns() : layout_.channel();
  }
  int64_t feature_floats() const {
    int64_t sum = 0;
    for (const Branch& branch : conv_.branches) sum += branch.features * feature_row(branch);
    return sum;
  }
  int64_t work_floats() const {
    const int64_t source = channel_chunk_ * (layout_.channel() + kColumnStep);
    const int64_t target = output_chunk_ * (layout_.columns() + numbers_);
    return signs_ + std::max(source, target);
  }

  // Rows [first, last) of the features of all branches, one branch after the other.
  void features(const Tile& tile, int64_t first, int64_t last, float* out, float* work) const {
    const std::vector<uint16_t> masks = tile_masks(tile);
    float* buffer = work + signs_;
    for (int64_t c = 0; c < conv_.inputs; c += channel_chunk_) {
      const Chunk chunk = read(tile, c, std::min(channel_chunk_, conv_.inputs - c), buffer);
      int64_t begin = 0;  // of the branch
      float* target = out;
      for (const Branch& branch : conv_.branches) {
        const int64_t row = std::max(first - begin, int64_t{0});
        const int64_t rows = std::min(last - begin, branch.features) - row;
        if (rows > 0) {
          add_features(branch, tile, row, rows, chunk, masks, target + row * feature_row(branch),
                       work);
        }
        begin += branch.features;
        target += branch.features * feature_row(branch);
      }
    }
  }

  // Masks of the taps; none where images are packed.
  std::vector<uint16_t> tile_masks(const Tile& tile) const {
    if (!in_place_ || (pointwise_ && is_whole(tile))) return {};
    return layout_.masks(tile.first_row, tile.first_row + tile.rows);
  }
  bool is_whole(const Tile& tile) const { return tile.rows * layout_.pitch() % kColumnStep == 0; }

  // Some channels of the input, in the layout of the sources.
  struct Chunk {
    int64_t first;
    int64_t channels;
    const float* data;
    int64_t channel;
  };

  Chunk read(const Tile& tile, int64_t c, int64_t channels, float* buffer) const {
    const ImageView<const T> image = input_.at(tile.image, tile.group * conv_.inputs + c);
    if constexpr (std::is_same_v<T, float>) {
      if (in_place_) {
        return {c, channels, image.data + layout_.first_source_row(tile.first_row) * image.row,
                image.channel};
      }
    }
    layout_.pack(image, channels, tile.first_row, buffer,
                 buffer + channel_chunk_ * layout_.channel());
    return {c, channels, buffer, layout_.channel()};
  }

  // Adds what the chunk's channels contribute to some rows of a branch's features.
  void add_features(const Branch& branch, const Tile& tile, int64_t row, int64_t rows,
                    const Chunk& chunk, const std::vector<uint16_t>& masks, float* out,
                    float* signs) const {
    const int64_t block_rows = branch.features / branch.in_blocks;
    const int64_t block_channels = conv_.inputs / branch.in_blocks;
    for (int64_t block = chunk.first / block_channels; block < branch.in_blocks; ++block) {
      const int64_t first_row = std::max(row, block * block_rows);
      const int64_t last_row = std::min(row + rows, (block + 1) * block_rows);
      const int64_t first = std::max(chunk.first, block * block_channels);
      const int64_t last = std::min(chunk.first + chunk.channels, (block + 1) * block_channels);
      if (first >= last) break;
      if (first_row >= last_row) continue;
      const Chunk part{first, last - first, chunk.data + (first - chunk.first) * chunk.channel,
                       chunk.channel};
      add_block_features(branch, tile, first_row - block * block_rows, last_row - first_row, part,
                         first > block * block_channels, masks,
                         out + (first_row - row) * feature_row(branch), signs);
    }
  }

  // The same for channels of one block; rows count from its first, `add` says whether channels of
  // it have been there before.
  void add_block_features(const Branch& branch, const Tile& tile, int64_t row, int64_t rows,
                          const Chunk& chunk, bool add, const std::vector<uint16_t>& masks,
                          float* out, float* signs) const {
    const Factor& factor = branch.in;
    const int64_t width = positions(factor);
    Product product{factor.data,   factor.feature, factor.channel, kNoOffset, chunk.data,
                    chunk.channel, kNoOffset,      chunk.channels, 1};
    if (factor.signs.packed) {
      product.w = signs;
      product.w_row = channel_chunk_ * width;
      product.w_outer = width;
      for (int64_t j = 0; j < rows; ++j) {
        vector_kernels().expand_signs(factor.signs.row(tile.group, row + j), chunk.first * width,
                                      chunk.channels * width, factor.signs.magnitude,
                                      signs + j * product.w_row);
      }
    } else {
      product.w += tile.group * factor.group + row * factor.feature + chunk.first * factor.channel;
    }
    if (factor.taps || pointwise_) {
      set_taps(factor, masks, product);
      vector_kernels().product(&product, 1, rows, tile_columns(tile), nullptr, out,
                               feature_row(branch), add);
    } else {
      add_whole_source(tile, rows, product, out, add);
    }
  }

  // Before the taps every position of the source is needed: the packed zeros too, but of images
  // only the rows that exist.
  void add_whole_source(const Tile& tile, int64_t rows, Product product, float* out,
                        bool add) const {
    if (!in_place_) {
      vector_kernels().product(&product, 1, rows, layout_.channel(), nullptr, out,
                               layout_.channel(), add);
      return;
    }
    const int64_t origin = layout_.first_source_row(tile.first_row);
    const int64_t first = std::max<int64_t>(0, origin);
    const int64_t last =
        std::min(sampling_.sources[0].rows, layout_.last_source_row(tile.first_row + tile.rows));
    const int64_t count = (last - first) * layout_.pitch();
    const int64_t offset = (first - origin) * layout_.pitch();
    std::vector<uint16_t> masks(static_cast<size_t>(whole_steps(count) / kColumnStep), 0xffff);
    if (count % kColumnStep != 0) {
      masks.back() = static_cast<uint16_t>((1u << (count % kColumnStep)) - 1);
      product.mask = masks.data();
    }
    product.b += offset;
    vector_kernels().product(&product, 1, rows, whole_steps(count), nullptr, out + offset,
                             layout_.channel(), add);
  }

  void set_taps(const Factor& factor, const std::vector<uint16_t>& masks, Product& product) const {
    if (factor.taps) {
      product.w_tap = layout_.filter_offsets();
      product.b_tap = layout_.source_offsets();
      product.taps = layout_.taps();
    }
    if (!masks.empty()) {
      product.mask = masks.data();
      product.mask_tap = layout_.columns() / kColumnStep;
    }
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
  void outputs(const Tile& tile, int64_t first, int64_t last, const float* features, float* work,
               const ImageView<T>& output) const {
    const int64_t columns = tile_columns(tile);
    const std::vector<uint16_t> masks = pointwise_ ? std::vector<uint16_t>() : tile_masks(tile);
    float* numbers = work + signs_;
    float* target = numbers + output_chunk_ * numbers_;
    for (int64_t o = first; o < last; o += output_chunk_) {
      const int64_t chunk_end = std::min(o + output_chunk_, last);
      expand_output_signs(tile.group, o, chunk_end - o, work);
      // Outputs of one block at a time: blocks have features of their own.
      for (int64_t p = o; p < chunk_end;) {
        const int64_t rows = std::min(chunk_end, (p / out_block_ + 1) * out_block_) - p;
        Product parts[2];
        const int count =
            output_parts(tile.group, p, rows, features, masks, work, p - o, numbers, parts);
        const int64_t channel = tile.group * conv_.outputs + p;
        const float* bias = conv_.bias ? conv_.bias + channel : nullptr;
        const ImageView<T> image = output.at(tile.image, channel);
        store(parts, count, rows, columns, bias, tile, image, target);
        p += rows;
      }
    }
  }

  // Outputs of one block, from the sum of products to where they belong.
  void store(const Product* parts, int count, int64_t rows, int64_t columns, const float* bias,
             const Tile& tile, const ImageView<T>& image, float* buffer) const {
    if constexpr (std::is_same_v<T, float>) {
      if (contiguous_rows(image, layout_.pitch()) && layout_.pitch() == sampling_.target.columns &&
          columns == tile.rows * layout_.pitch()) {
        vector_kernels().product(parts, count, rows, columns, bias,
                                 image.data + tile.first_row * image.row, image.channel, false);
        return;
      }
    }
    vector_kernels().product(parts, count, rows, columns, bias, buffer, layout_.columns(), false);
    store_window(buffer, layout_.columns(), layout_.pitch(), rows, image, tile.first_row, tile.rows,
                 sampling_.target.columns);
  }

  // Signs of outputs [o, o + rows), o a multiple of kColumnStep; one branch at most has them.
  void expand_output_signs(int64_t group, int64_t o, int64_t rows, float* out) const {
    for (const Branch& branch : conv_.branches) {
      const Signs& signs = branch.out.signs;
      if (!signs.packed) continue;
      const int64_t width = positions(branch.out);
      for (int64_t j = 0; j < branch.features; ++j) {
        vector_kernels().expand_signs(signs.row(group, j), o * width, rows * width, signs.magnitude,
                                      out + j * output_chunk_ * width);
      }
    }
  }

  // One part for each branch; at most one has signs, of which those of output o come `first_sign`
  // outputs after the first, and one numbers.
  int output_parts(int64_t group, int64_t o, int64_t rows, const float* features,
                   const std::vector<uint16_t>& masks, const float* signs, int64_t first_sign,
                   float* numbers, Product* parts) const {
    int count = 0;
    for (const Branch& branch : conv_.branches) {
      const Factor& factor = branch.out;
      const int64_t width = positions(factor);
      const int64_t block_features = branch.features / branch.out_blocks;
      const int64_t block = o * branch.out_blocks / conv_.outputs;
      const int64_t row = feature_row(branch);
      Product& product = parts[count++];
      product = {
          nullptr,   width,          0, kNoOffset, features + block * block_features * row, row,
          kNoOffset, block_features, 1};
      if (factor.signs.packed) {
        product.w = signs + first_sign * width;
        product.w_outer = output_chunk_ * width;
      } else {
        set_numbers(factor, factor.data + group * factor.group + o * factor.channel, block_features,
                    rows, numbers, product);
      }
      if (factor.taps) set_taps(factor, masks, product);
      features += branch.features * row;
    }
    return count;
  }

  // Rows that lie closer than features are copied together: strides of a power of two would else
  // share a few lines of the cache.
  void set_numbers(const Factor& factor, const float* data, int64_t features, int64_t rows,
                   float* copy, Product& product) const {
    if (factor.channel >= factor.feature) {
      product.w = data;
      product.w_row = factor.channel;
      product.w_outer = factor.feature;
      return;
    }
    const int64_t length = rows * positions(factor);
    for (int64_t j = 0; j < features; ++j) {
      std::copy_n(data + j * factor.feature, length, copy + j * length);
    }
    product.w = copy;
    product.w_outer = length;
  }

  const TwoSidedConv& conv_;
  const Sampling& sampling_;
  const ImageView<const T> input_;
  const bool pointwise_;
  const bool in_place_;
  const int64_t tile_rows_;
  const Layout layout_;
  int64_t channel_chunk_;
  int64_t output_chunk_;
  int64_t signs_;
  int64_t numbers_ = 1;  // floats of an output's numbers
  int64_t out_block_;    // outputs that share their features
};

}  // namespace

bool fits(const TwoSidedConv& conv, const Sampling& sampling) {
  const Reach reach(sampling);
  if (reach.last_row - reach.first_row > kMostFloats ||
      reach.last_column - reach.first_column > kMostFloats) {
    return false;  // what is computed next could overflow
  }
  return Layout(sampling, 1, false).channel() * std::max(conv.features(), kOutputStep) <=
         kMostFloats;
}

template <typename T>
void run(const TwoSidedConv& conv, const Sampling& sampling, const ImageView<const T>& input,
         const ImageView<T>& output) {
  if (conv.images * sampling.target.rows * sampling.target.columns == 0) return;
  Runner<T>(conv, sampling, input).run(output);
}

template <typename T>
void run_features(const TwoSidedConv& conv, const Sampling& sampling,
                  const ImageView<const T>& input, const ImageView<float>& output) {
  if (conv.images * sampling.target.rows * sampling.target.columns == 0) return;
  Runner<T>(conv, sampling, input).run_features(output);
}

#define SKETCHLAYERS_INSTANTIATE(T)                                                           \
  template void run(const TwoSidedConv&, const Sampling&, const ImageView<const T>&,          \
                    const ImageView<T>&);                                                     \
  template void run_features(const TwoSidedConv&, const Sampling&, const ImageView<const T>&, \
                             const ImageView<float>&)
SKETCHLAYERS_INSTANTIATE(float);
SKETCHLAYERS_INSTANTIATE(c10::BFloat16);
SKETCHLAYERS_INSTANTIATE(c10::Half);
#undef SKETCHLAYERS_INSTANTIATE

}  // namespace sketchlayers::cpu
