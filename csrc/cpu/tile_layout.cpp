#include "cpu/tile_layout.h"

#include <ATen/Parallel.h>

#include <algorithm>

namespace sketchlayers::cpu {
namespace {

// Bits [begin, end) of masks of kColumnStep bits each.
void set_bits(int64_t begin, int64_t end, uint16_t* masks) {
  for (int64_t i = begin; i < end;) {
    const int64_t bit = i % kColumnStep;
    const int64_t count = std::min(kColumnStep - bit, end - i);
    masks[i / kColumnStep] |= static_cast<uint16_t>(((1u << count) - 1) << bit);
    i += count;
  }
}

}  // namespace

Reach::Reach(const Sampling& sampling) {
  for (size_t i = 0; i < sampling.taps.size(); ++i) {
    const Tap& tap = sampling.taps[i];
    first_row = i == 0 ? tap.row : std::min(first_row, tap.row);
    last_row = i == 0 ? tap.row : std::max(last_row, tap.row);
    first_column = i == 0 ? tap.column : std::min(first_column, tap.column);
    last_column = i == 0 ? tap.column : std::max(last_column, tap.column);
  }
}

TileLayout::TileLayout(const Sampling& sampling, int64_t rows, bool masked)
    : sampling_(sampling), reach_(sampling) {
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

std::vector<uint16_t> TileLayout::column_masks(int64_t column, int64_t rows) const {
  const int64_t begin = std::max<int64_t>(0, -column);
  const int64_t end = std::min(sampling_.target.columns, sampling_.sources[0].columns - column);
  if (begin == 0 && end == sampling_.target.columns) return {};
  std::vector<uint16_t> result(static_cast<size_t>(columns_ / kColumnStep), 0);
  for (int64_t row = 0; row < rows; ++row) {
    set_bits(row * pitch_ + begin, row * pitch_ + end, result.data());
  }
  return result;
}

std::vector<uint16_t> TileLayout::masks(int64_t first, int64_t last) const {
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
      set_bits(start + begin, start + end, result.data() + t * steps);
    }
  }
  return result;
}

// Zeros at the end of a row serve as those at the start of the next.
int64_t TileLayout::shared_zeros(int64_t needed) const {
  int64_t shared = sampling_.sources.empty() ? 0 : needed;
  for (const ImageGrid& grid : sampling_.sources) {
    const int64_t before = std::max<int64_t>(0, -reach_.first_column);
    const int64_t after =
        std::max<int64_t>(0, sampling_.target.columns + reach_.last_column - grid.columns);
    shared = std::min({shared, before, after});
  }
  return shared;
}

bool tiles_fit(const Sampling& sampling, int64_t channels) {
  constexpr int64_t kMostFloats = int64_t{1} << 22;
  const Reach reach(sampling);
  if (reach.last_row - reach.first_row > kMostFloats ||
      reach.last_column - reach.first_column > kMostFloats) {
    return false;  // what is computed next could overflow
  }
  return TileLayout(sampling, 1, false).channel() <= kMostFloats / channels;
}

bool is_pointwise(const Sampling& sampling) {
  return sampling.taps.size() == 1 && sampling.taps[0].row == 0 && sampling.taps[0].column == 0 &&
         sampling.source_row_step == 1 && sampling.source_column_step == 1 &&
         sampling.sources[0].columns == sampling.target.columns &&
         sampling.sources[0].rows == sampling.target.rows;
}

int64_t tile_rows(int64_t positions, int64_t others, const Sampling& sampling, bool masked) {
  const int64_t rows = sampling.target.rows;
  const int64_t pitch = TileLayout(sampling, 1, masked).pitch();
  const int64_t most = std::clamp<int64_t>(positions / pitch, 1, rows);
  const int64_t threads = at::get_num_threads();
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

}  // namespace sketchlayers::cpu
