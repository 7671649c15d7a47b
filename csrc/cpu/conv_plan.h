// One call of a two-sided convolution cut into tiles: what both stages of a tile, its features and
// its outputs, must agree on.
#pragma once

#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "cpu/tile_layout.h"
#include "cpu/two_sided_conv.h"

namespace sketchlayers::cpu {

constexpr int64_t kOutputStep = 48;  // a multiple of kColumnStep, and of the rows of a block

// What a task keeps beside the second-level cache's other guests.
constexpr int64_t kFeatureFloats = 1 << 15;
constexpr int64_t kSourceFloats = 1 << 16;
constexpr int64_t kSignFloats = 1 << 16;

struct Tile {
  int64_t image;
  int64_t group;
  int64_t first_row;
  int64_t rows;
};

// A tile's memory: its features, which lie one branch after the other, and what a stage needs
// beside them: first `signs` floats for expanded signs, then a buffer.
class ConvPlan {
 public:
  // `in_place`: whether images are read where they lie.
  ConvPlan(const TwoSidedConv& conv_, const Sampling& sampling_, bool in_place_)
      : conv(conv_),
        sampling(sampling_),
        in_place(in_place_),
        pointwise(is_pointwise(sampling)),
        tile_rows(
            cpu::tile_rows(tile_positions(conv), conv.images * conv.groups, sampling, in_place)),
        layout(sampling, tile_rows, in_place),
        out_block(conv.outputs) {
    // Taps are 32-bit offsets into a channel.
    TORCH_INTERNAL_ASSERT(layout.channel() <= std::numeric_limits<int32_t>::max());
    int64_t in_signs = 1;  // floats of a channel's signs, and of an output's
    int64_t out_signs = 1;
    for (const Branch& branch : conv.branches) {
      in_signs = std::max(in_signs, sign_floats(branch, branch.in));
      out_signs = std::max(out_signs, sign_floats(branch, branch.out));
      numbers = std::max(numbers, branch.features * positions(branch.out));
      out_block = std::min(out_block, conv.outputs / branch.out_blocks);
    }
    channel_chunk =
        chunk(std::min(kSourceFloats / layout.channel(), kSignFloats / in_signs), conv.inputs);
    output_chunk = chunk(std::min(kOutputStep, kSignFloats / out_signs), conv.outputs);
    signs = std::max(in_signs * channel_chunk, out_signs * output_chunk);
  }

  int64_t tiles() const { return conv.images * conv.groups * row_tiles(); }
  Tile tile(int64_t i) const {
    const int64_t first = i % row_tiles() * tile_rows;
    const int64_t image = i / row_tiles();
    return {image / conv.groups, image % conv.groups, first,
            std::min(tile_rows, sampling.target.rows - first)};
  }

  int64_t positions(const Factor& factor) const { return factor.taps ? conv.positions : 1; }
  // Features after taps lie as the target does, those before as the source.
  int64_t feature_row(const Branch& branch) const {
    return branch.in.taps || pointwise ? layout.columns() : layout.channel();
  }
  int64_t feature_floats() const {
    int64_t sum = 0;
    for (const Branch& branch : conv.branches) sum += branch.features * feature_row(branch);
    return sum;
  }
  int64_t work_floats() const {
    const int64_t source = channel_chunk * (layout.channel() + kColumnStep);
    const int64_t target = output_chunk * (layout.columns() + numbers);
    return signs + std::max(source, target);
  }

  // The last tile may have fewer rows than the others.
  int64_t tile_columns(const Tile& tile) const {
    return whole_steps((tile.rows - 1) * layout.pitch() + sampling.target.columns);
  }
  // Masks of the taps; none where images are packed.
  std::vector<uint16_t> tile_masks(const Tile& tile) const {
    const bool whole = tile.rows * layout.pitch() % kColumnStep == 0;
    if (!in_place || (pointwise && whole)) return {};
    return layout.masks(tile.first_row, tile.first_row + tile.rows);
  }
  void set_taps(const Factor& factor, const std::vector<uint16_t>& masks, Product& product) const {
    if (factor.taps) {
      product.w_tap = layout.filter_offsets();
      product.b_tap = layout.source_offsets();
      product.taps = layout.taps();
    }
    if (!masks.empty()) {
      product.mask = masks.data();
      product.mask_tap = layout.columns() / kColumnStep;
    }
  }

  const TwoSidedConv& conv;
  const Sampling& sampling;
  const bool in_place;
  const bool pointwise;
  const int64_t tile_rows;
  const TileLayout layout;
  int64_t channel_chunk;  // channels of the input that are read at a time
  int64_t output_chunk;   // outputs that are made at a time
  int64_t signs;
  int64_t numbers = 1;  // floats of an output's numbers
  int64_t out_block;    // outputs that share their features

 private:
  static int64_t tile_positions(const TwoSidedConv& conv) {
    constexpr int64_t kFewest = 64;
    constexpr int64_t kMost = 1024;
    return std::clamp<int64_t>(kFeatureFloats / conv.features(), kFewest, kMost);
  }
  // Whole steps, at least one, of what there is.
  static int64_t chunk(int64_t wanted, int64_t size) {
    return std::min(std::max(wanted / kColumnStep, int64_t{1}) * kColumnStep, whole_steps(size));
  }
  int64_t row_tiles() const { return ceil_divide(sampling.target.rows, tile_rows); }
  int64_t sign_floats(const Branch& branch, const Factor& factor) const {
    return factor.signs.packed ? branch.features * positions(factor) : 0;
  }
};

}  // namespace sketchlayers::cpu
