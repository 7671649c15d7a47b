// One call of a two-sided convolution cut into tiles: what both stages of a tile, its features and
// its outputs, must agree on.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/tile_layout.h"
#include "cpu/two_sided_conv.h"

namespace sketchlayers::cpu {

constexpr int64_t kOutputStep = 48;  // a multiple of kColumnStep, and of the rows of a block

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
  ConvPlan(const TwoSidedConv& conv, const Sampling& sampling, bool in_place);

  int64_t tiles() const { return conv.images * conv.groups * row_tiles(); }
  Tile tile(int64_t i) const;

  int64_t positions(const Factor& factor) const { return factor.taps ? conv.positions : 1; }
  // Features after taps lie as the target does, those before as the source.
  int64_t feature_row(const Branch& branch) const {
    return branch.in.taps || pointwise ? layout.columns() : layout.channel();
  }
  int64_t feature_floats() const;
  int64_t work_floats() const;

  // The last tile may have fewer rows than the others.
  int64_t tile_columns(const Tile& tile) const {
    return whole_steps((tile.rows - 1) * layout.pitch() + sampling.target.columns);
  }
  // Masks of the taps; none where images are packed.
  std::vector<uint16_t> tile_masks(const Tile& tile) const;
  void set_taps(const Factor& factor, const std::vector<uint16_t>& masks, Product& product) const;

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
  int64_t row_tiles() const { return ceil_divide(sampling.target.rows, tile_rows); }
  int64_t sign_floats(const Branch& branch, const Factor& factor) const {
    return factor.signs.packed ? branch.features * positions(factor) : 0;
  }
};

}  // namespace sketchlayers::cpu
