// How a tile of a two-sided convolution lies in memory, and how many rows it takes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "cpu/image.h"
#include "cpu/sampling.h"
#include "cpu/two_sided_conv.h"

namespace sketchlayers::cpu {

// The least and the largest of the taps' offsets, and one past what they read in a row.
struct Reach {
  int64_t first_row = 0;
  int64_t last_row = 0;
  int64_t first_column = 0;
  int64_t last_column = 0;

  explicit Reach(const Sampling& sampling);
};

// How the sources of a tile of `rows` target rows lie in memory. All rows share one pitch with the
// target's tile, so that a tap is an offset. Either packed, with zeros around every grid, or as the
// images themselves lie, when masks stand in for the zeros.
class TileLayout {
 public:
  TileLayout(const Sampling& sampling, int64_t rows, bool masked);

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

  // Masks of taps at this offset along a row, for any `rows` target rows whose sources all exist;
  // none if every position counts.
  std::vector<uint16_t> column_masks(int64_t column, int64_t rows) const;
  // Masks of all taps for target rows [first, last): mask[tap * steps + step].
  std::vector<uint16_t> masks(int64_t first, int64_t last) const;

 private:
  int64_t shared_zeros(int64_t needed) const;

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
  Reach reach_;
  int64_t pitch_;
  int64_t grid_rows_;
  int64_t grid_floats_;
  int64_t channel_;
  int64_t columns_;
  std::vector<int32_t> filter_offsets_;
  std::vector<int32_t> source_offsets_;
};

// Images that can be read where they lie: rows without gaps and of the target's size.
template <typename T>
bool reads_in_place(const Sampling& sampling, const ImageView<const T>& input) {
  if (!std::is_same_v<T, float> || !vector_kernels().takes_masks) return false;
  if (sampling.sources.size() != 1) return false;
  const ImageGrid& source = sampling.sources[0];
  const bool contiguous = (input.column == 1 || source.columns == 1) && input.row == source.columns;
  return contiguous && sampling.source_row_step == 1 && sampling.source_column_step == 1 &&
         source.rows == sampling.target.rows && source.columns == sampling.target.columns;
}

// The same where taps read them: channels that all fall into the same lines of the cache would
// throw each other out before the next tap.
template <typename T>
bool reads_taps_in_place(const Sampling& sampling, const ImageView<const T>& input) {
  constexpr int64_t kAliasing = 4096 / sizeof(float);
  return reads_in_place(sampling, input) &&
         (sampling.taps.size() == 1 || input.channel % kAliasing != 0);
}

// Whether the buffers of a tile with so many channels or features stay small: taps far apart would
// need rows upon rows of zeros.
bool tiles_fit(const Sampling& sampling, int64_t channels);

// One tap that reads what it writes.
bool is_pointwise(const Sampling& sampling);

// Rows of a tile of about so many positions, in tiles of equal size, enough for all threads when
// there are `others` of each.
int64_t tile_rows(int64_t positions, int64_t others, const Sampling& sampling, bool masked);

}  // namespace sketchlayers::cpu
