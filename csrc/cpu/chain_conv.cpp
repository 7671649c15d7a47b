#include "cpu/chain_conv.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/conv_stages.h"
#include "cpu/tasks.h"
#include "cpu/tile_layout.h"

namespace sketchlayers::cpu {
namespace {

// What a tile keeps in the second-level cache: its inputs and features, and of features before a
// depthwise core only some at a time.
constexpr int64_t kTileFloats = 1 << 17;
constexpr int64_t kBlockFloats = 1 << 15;
constexpr int64_t kFilterStep = 16;  // filters whose sources stay in the first-level cache
constexpr int64_t kBlockStep = 12;   // a multiple of the rows that kernels compute at once
constexpr int64_t kFewestPositions = 64;
constexpr int64_t kMostPositions = 2048;

int64_t tile_positions(const ChainConv& conv) {
  const int64_t rows = conv.inputs + conv.after + (conv.depthwise ? 0 : conv.before);
  return std::clamp(kTileFloats / rows, kFewestPositions, kMostPositions);
}

// Where the source of a core lies: numbers of a channel, or feature, and the first one.
struct Rows {
  const float* data;
  int64_t row;
};

// One call cut into tiles, and what is computed of each. Stages may be cut into ranges of features
// or outputs.
template <typename T>
class Chain {
 public:
  Chain(const ChainConv& conv, const Sampling& sampling, const ImageView<const T>& input,
        const ImageView<T>& output)
      : conv_(conv),
        sampling_(sampling),
        input_(input),
        output_(output),
        pointwise_(is_pointwise(sampling)),
        in_place_(reads_in_place(sampling, input) && (conv.first || pointwise_)),
        tile_rows_(
            cpu::tile_rows(tile_positions(conv), conv.images * conv.groups, sampling, in_place_)),
        layout_(sampling, tile_rows_, in_place_),
        row_tiles_(ceil_divide(sampling.target.rows, tile_rows_)) {
    const int64_t rows = kBlockFloats / source_row() / kBlockStep * kBlockStep;
    block_ = conv.depthwise ? std::max(rows, kBlockStep) : conv.before;
    if (in_place_) {
      carried_ = (layout_.last_source_row(0) - layout_.first_source_row(0)) * layout_.pitch();
    }
    if (conv.depthwise || (in_place_ && conv.first)) join_taps();
  }

  int64_t tiles() const { return conv_.images * conv_.groups * row_tiles_; }
  Tile tile(int64_t i) const {
    const int64_t first = i % row_tiles_ * tile_rows_;
    const int64_t image = i / row_tiles_;
    return {image / conv_.groups, image % conv_.groups, first,
            std::min(tile_rows_, sampling_.target.rows - first)};
  }

  // Floats of the inputs, of the features before the core, of those after it, and of what a stage
  // needs for itself.
  int64_t source_floats() const {
    return in_place_ ? 0 : conv_.inputs * source_row() + kColumnStep * conv_.inputs;
  }
  int64_t before_floats() const { return conv_.first ? block_ * source_row() : 0; }
  int64_t after_floats() const { return conv_.last ? conv_.after * layout_.columns() : 0; }
  int64_t work_floats() const { return kOutputStep * layout_.columns(); }
  int64_t block() const { return block_; }
  // Of features that the next tile of an image needs, too: their last rows.
  int64_t carried_floats() const { return conv_.before * carried_; }
  int64_t run_tiles() const {
    return carried_ > 0 ? run_length(row_tiles_, conv_.images * conv_.groups) : 1;
  }
  int64_t row_tiles() const { return row_tiles_; }

  // Inputs [first, last) into `out`; nothing where they are read where they lie.
  void pack(const Tile& tile, int64_t first, int64_t last, float* out) const {
    if (in_place_) return;
    layout_.pack(input_.at(tile.image, tile.group * conv_.inputs + first), last - first,
                 tile.first_row, out + first * source_row(),
                 out + conv_.inputs * source_row() + first * kColumnStep);
  }

  // Features [first, last) before the core into `out`. Their last rows go to `carried`, if there is
  // one, and are there already if this tile `follows` the one above.
  void make_before(const Tile& tile, int64_t first, int64_t last, const float* packed, float* out,
                   float* carried, bool follows) const {
    const Rows source = inputs(tile, packed);
    Product product = matrix(conv_.first + (tile.group * conv_.before + first) * conv_.inputs,
                             conv_.inputs, source);
    if (!in_place_) {
      vector_kernels().product(&product, 1, last - first, source_row(), nullptr, out, source_row(),
                               false);
      return;
    }
    // Of images only the rows that exist; the others are zeros.
    const int64_t origin = layout_.first_source_row(tile.first_row);
    const int64_t kept = follows ? carried_ : 0;
    const int64_t begin_row = std::max<int64_t>(0, origin + kept / layout_.pitch());
    const int64_t end_row =
        std::min(sampling_.sources[0].rows, layout_.last_source_row(tile.first_row + tile.rows));
    const int64_t begin = (begin_row - origin) * layout_.pitch();
    const int64_t end = std::max(begin, (end_row - origin) * layout_.pitch());
    const int64_t whole = begin + (end - begin) / kColumnStep * kColumnStep;
    const auto multiply = [&](int64_t from, int64_t columns) {
      product.b = source.data + from;
      vector_kernels().product(&product, 1, last - first, columns, nullptr, out + from,
                               source_row(), false);
    };
    multiply(begin, whole - begin);
    if (whole < end) {
      const auto mask = static_cast<uint16_t>((1u << (end - whole)) - 1);
      product.mask = &mask;
      multiply(whole, kColumnStep);
    }
    const int64_t rest = whole_steps(end - begin) + begin;
    for (int64_t i = 0; i < last - first; ++i) {
      float* row = out + i * source_row();
      float* last_rows = carried ? carried + (first + i) * carried_ : nullptr;
      std::copy_n(last_rows, kept, row);
      std::fill(row + kept, row + begin, 0.0f);
      std::fill(row + rest, row + std::max(rest, source_row()), 0.0f);
      if (carried) std::copy_n(row + tile.rows * layout_.pitch(), carried_, last_rows);
    }
  }

  // Features [first, last) after the core into `out`, from those before it, or from the inputs. The
  // first of `before` is feature `first` where the core is depthwise, and 0 else.
  void make_after(const Tile& tile, int64_t first, int64_t last, const Rows& before,
                  float* out) const {
    const std::vector<uint16_t> masks = last_masks(tile);
    const std::vector<Product> parts = core(tile, first, before, masks);
    const int count = static_cast<int>(parts.size());
    const int64_t columns = tile_columns(tile);
    if (conv_.depthwise) {
      vector_kernels().depthwise(parts.data(), count, last - first, columns, out,
                                 layout_.columns());
    } else {
      vector_kernels().product(parts.data(), count, last - first, columns, nullptr, out,
                               layout_.columns(), false);
    }
  }

  // Outputs [first, last), from the features after the core, or where there is no last factor by
  // the core itself.
  void make_outputs(const Tile& tile, int64_t first, int64_t last, const Rows& features,
                    float* work) const {
    const std::vector<uint16_t> masks = last_masks(tile);
    for (int64_t o = first; o < last; o += kOutputStep) {
      const int64_t rows = std::min(kOutputStep, last - o);
      const int64_t channel = tile.group * conv_.outputs + o;
      const std::vector<Product> parts =
          conv_.last ? std::vector<Product>{matrix(conv_.last + channel * conv_.after, conv_.after,
                                                   features)}
                     : core(tile, o, features, masks);
      store_products(parts.data(), static_cast<int>(parts.size()), rows, tile_columns(tile),
                     conv_.bias ? conv_.bias + channel : nullptr, layout_, sampling_, tile,
                     output_.at(tile.image, channel), work);
    }
  }

  // What the core reads, where there is no first factor.
  Rows inputs(const Tile& tile, const float* packed) const {
    if constexpr (std::is_same_v<T, float>) {
      if (in_place_) {
        const auto image = input_.at(tile.image, tile.group * conv_.inputs);
        return {image.data + layout_.first_source_row(tile.first_row) * image.row, image.channel};
      }
    }
    return {packed, source_row()};
  }
  Rows before(const float* made) const { return {made, source_row()}; }
  Rows after(const float* made) const { return {made, layout_.columns()}; }

 private:
  int64_t source_row() const { return layout_.channel(); }
  int64_t tile_columns(const Tile& tile) const {
    return whole_steps((tile.rows - 1) * layout_.pitch() + sampling_.target.columns);
  }

  // Where the core reads images where they lie: masks that end with the last one.
  std::vector<uint16_t> last_masks(const Tile& tile) const {
    const bool whole = tile.rows * layout_.pitch() % kColumnStep == 0;
    if (!in_place_ || conv_.first || whole) return {};
    return layout_.masks(tile.first_row, tile.first_row + tile.rows);
  }

  // The product of a matrix (any, columns) with features.
  static Product matrix(const float* w, int64_t columns, const Rows& features) {
    return {w, columns, 1, kNoOffset, features.data, features.row, kNoOffset, columns, 1};
  }

  // Features, or outputs, from `feature` on: the sum of these.
  std::vector<Product> core(const Tile& tile, int64_t feature, const Rows& source,
                            const std::vector<uint16_t>& masks) const {
    const int64_t filters = conv_.depthwise ? 1 : conv_.before;
    const int64_t row = filters * conv_.positions;
    Product whole{conv_.core + (tile.group * conv_.after + feature) * row,
                  row,
                  conv_.positions,
                  layout_.filter_offsets(),
                  source.data,
                  source.row,
                  layout_.source_offsets(),
                  filters,
                  layout_.taps()};
    if (taps_.empty()) {
      if (!masks.empty()) whole.mask = masks.data();
      return {whole};
    }
    std::vector<Product> parts;
    for (int64_t f = 0; f < filters; f += kFilterStep) {
      for (const Taps& taps : taps_) {
        Product part = whole;
        part.w += f * conv_.positions;
        part.b += f * source.row;
        part.outer = std::min(kFilterStep, filters - f);
        part.w_tap = taps.filter.data();
        part.b_tap = taps.source.data();
        part.taps = static_cast<int64_t>(taps.filter.size());
        if (!taps.masks.empty()) part.mask = taps.masks.data();
        parts.push_back(part);
      }
    }
    return parts;
  }

  // Taps of a core that have the same masks.
  struct Taps {
    std::vector<int32_t> filter;
    std::vector<int32_t> source;
    std::vector<uint16_t> masks;
  };

  // Where features lie as images do, those at one offset along a row; else all.
  void join_taps() {
    std::vector<int64_t> offsets;
    for (size_t t = 0; t < sampling_.taps.size(); ++t) {
      const int64_t column = in_place_ ? sampling_.taps[t].column : 0;
      const auto found = std::find(offsets.begin(), offsets.end(), column);
      const auto place = static_cast<size_t>(found - offsets.begin());
      if (found == offsets.end()) {
        offsets.push_back(column);
        taps_.emplace_back();
        if (in_place_) taps_.back().masks = layout_.column_masks(column, tile_rows_);
      }
      taps_[place].filter.push_back(layout_.filter_offsets()[t]);
      taps_[place].source.push_back(layout_.source_offsets()[t]);
    }
  }

  const ChainConv& conv_;
  const Sampling& sampling_;
  const ImageView<const T> input_;
  const ImageView<T> output_;
  const bool pointwise_;
  // Masks of taps cost more than a copy of the input with zeros around it, but where there are few.
  const bool in_place_;
  const int64_t tile_rows_;
  const TileLayout layout_;
  const int64_t row_tiles_;
  int64_t block_;        // features before the core that are made at a time
  int64_t carried_ = 0;  // floats of a feature
  std::vector<Taps> taps_;
};

// Features [first, last) after a depthwise core, some at a time.
template <typename T>
void make_features(const Chain<T>& chain, const Tile& tile, int64_t first, int64_t last,
                   const float* source, float* before, float* after, float* carried = nullptr,
                   bool follows = false) {
  for (int64_t i = first; i < last; i += chain.block()) {
    const int64_t end = std::min(last, i + chain.block());
    chain.make_before(tile, i, end, source, before, carried, follows);
    chain.make_after(tile, i, end, chain.before(before), after + i * chain.after(nullptr).row);
  }
}

// A thread makes one tile after the other, of an image from the top to the bottom.
template <typename T>
void run_tiles(const Chain<T>& chain, const ChainConv& conv) {
  const int64_t run = chain.run_tiles();
  const int64_t runs = ceil_divide(chain.row_tiles(), run);
  const auto make = [&](int64_t i, bool follows) {
    const Tile tile = chain.tile(i);
    float* source =
        Scratch::get(chain.source_floats() + chain.before_floats() + chain.after_floats() +
                     chain.work_floats() + chain.carried_floats());
    float* before = source + chain.source_floats();
    float* after = before + chain.before_floats();
    float* work = after + chain.after_floats();
    float* carried = chain.carried_floats() ? work + chain.work_floats() : nullptr;
    chain.pack(tile, 0, conv.inputs, source);
    Rows features = chain.inputs(tile, source);
    if (conv.depthwise) {
      make_features(chain, tile, 0, conv.after, source, before, after, carried, follows && carried);
      features = chain.after(after);
    } else {
      if (conv.first) {
        chain.make_before(tile, 0, conv.before, source, before, carried, follows && carried);
        features = chain.before(before);
      }
      if (conv.last) {
        chain.make_after(tile, 0, conv.after, features, after);
        features = chain.after(after);
      }
    }
    chain.make_outputs(tile, 0, conv.outputs, features, work);
  };
  run_tasks(chain.tiles() / chain.row_tiles() * runs, [&](int64_t i) {
    const int64_t first = i % runs * run;
    const int64_t image = i / runs * chain.row_tiles();
    const int64_t end = std::min(first + run, chain.row_tiles());
    for (int64_t t = first; t < end; ++t) make(image + t, t > first);
  });
}

// Few tiles: threads share each one, stage by stage.
template <typename T>
void run_shared(const Chain<T>& chain, const ChainConv& conv, int64_t threads) {
  const int64_t count = chain.tiles();
  const int64_t before_floats = conv.depthwise ? 0 : chain.before_floats();
  const int64_t floats = chain.source_floats() + before_floats + chain.after_floats();
  const std::unique_ptr<float[]> shared(new float[static_cast<size_t>(count * floats + 1)]);
  struct Buffers {
    float* source;
    float* before;
    float* after;
  };
  const auto split = [&](int64_t size, int64_t step, const auto& stage) {
    const int64_t parts = std::min(ceil_divide(size, step), 2 * threads);
    const int64_t part = ceil_divide(ceil_divide(size, parts), step) * step;
    const int64_t slices = ceil_divide(size, part);
    run_tasks(count * slices, [&](int64_t i) {
      const int64_t first = i % slices * part;
      const Tile tile = chain.tile(i / slices);
      float* source = shared.get() + i / slices * floats;
      float* before = source + chain.source_floats();
      const Buffers buffers{source, before, before + before_floats};
      stage(tile, first, std::min(size, first + part), buffers);
    });
  };
  constexpr int64_t kRows = 6;  // that kernels compute at once
  if (chain.source_floats() > 0) {
    split(conv.inputs, kColumnStep,
          [&](const Tile& tile, int64_t first, int64_t last, const Buffers& to) {
            chain.pack(tile, first, last, to.source);
          });
  }
  if (conv.depthwise) {
    split(conv.after, kRows, [&](const Tile& tile, int64_t first, int64_t last, const Buffers& to) {
      make_features(chain, tile, first, last, to.source, Scratch::get(chain.before_floats()),
                    to.after);
    });
  } else {
    if (conv.first) {
      split(conv.before, kRows,
            [&](const Tile& tile, int64_t first, int64_t last, const Buffers& to) {
              chain.make_before(tile, first, last, to.source,
                                to.before + first * chain.before(nullptr).row, nullptr, false);
            });
    }
    if (conv.last) {
      split(
          conv.after, kRows, [&](const Tile& tile, int64_t first, int64_t last, const Buffers& to) {
            const Rows rows = conv.first ? chain.before(to.before) : chain.inputs(tile, to.source);
            chain.make_after(tile, first, last, rows, to.after + first * chain.after(nullptr).row);
          });
    }
  }
  split(conv.outputs, kColumnStep,
        [&](const Tile& tile, int64_t first, int64_t last, const Buffers& to) {
          const Rows rows = conv.last    ? chain.after(to.after)
                            : conv.first ? chain.before(to.before)
                                         : chain.inputs(tile, to.source);
          chain.make_outputs(tile, first, last, rows, Scratch::get(chain.work_floats()));
        });
}

}  // namespace

bool fits(const ChainConv& conv, const Sampling& sampling) {
  return tiles_fit(sampling, std::max({conv.inputs, conv.before, conv.after, kOutputStep}));
}

template <typename T>
void run(const ChainConv& conv, const Sampling& sampling, const ImageView<const T>& input,
         const ImageView<T>& output) {
  if (conv.images * sampling.target.rows * sampling.target.columns == 0) return;
  const Chain<T> chain(
      conv, sampling, input,
      output.grid(sampling.target, sampling.target_row_step, sampling.target_column_step));
  const int64_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  if (chain.tiles() >= threads) {
    run_tiles(chain, conv);
  } else {
    run_shared(chain, conv, threads);
  }
}

#define SKETCHLAYERS_INSTANTIATE(T)                                               \
  template void run(const ChainConv&, const Sampling&, const ImageView<const T>&, \
                    const ImageView<T>&)
SKETCHLAYERS_INSTANTIATE(float);
SKETCHLAYERS_INSTANTIATE(c10::BFloat16);
SKETCHLAYERS_INSTANTIATE(c10::Half);
#undef SKETCHLAYERS_INSTANTIATE

}  // namespace sketchlayers::cpu
