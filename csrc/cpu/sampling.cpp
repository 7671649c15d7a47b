#include "cpu/sampling.h"

#include <algorithm>
#include <cstddef>
#include <utility>

namespace sketchlayers::cpu {
namespace {

// Where a number stands among those that are there, which it joins if it is
// new.
int64_t place(std::vector<int64_t>& numbers, int64_t number) {
  const auto found = std::find(numbers.begin(), numbers.end(), number);
  const int64_t index = found - numbers.begin();
  if (found == numbers.end()) numbers.push_back(number);
  return index;
}

// An axis' taps, and the phases that they read.
struct AxisTaps {
  explicit AxisTaps(const ConvAxis& axis) {
    for (int64_t i = 0; i < axis.kernel; ++i) {
      const AxisTap tap = forward_tap(axis, i);
      offsets.push_back(tap.offset);
      grids.push_back(place(phases, tap.phase));
    }
  }

  std::vector<int64_t> offsets;
  std::vector<int64_t> grids;  // indices of phases
  std::vector<int64_t> phases;
};

}  // namespace

Sampling forward_sampling(const ConvAxis& rows, const ConvAxis& columns) {
  Sampling sampling{{0, 0, rows.output, columns.output}, 1, 1, {}, rows.stride, columns.stride, {}};
  const AxisTaps row(rows);
  const AxisTaps column(columns);
  const int64_t column_grids = static_cast<int64_t>(column.phases.size());
  for (const int64_t p : row.phases) {
    for (const int64_t q : column.phases) {
      sampling.sources.push_back({p, q, grid_size(rows.input, p, rows.stride),
                                  grid_size(columns.input, q, columns.stride)});
    }
  }
  for (size_t i = 0; i < row.offsets.size(); ++i) {
    for (size_t j = 0; j < column.offsets.size(); ++j) {
      sampling.taps.push_back({static_cast<int64_t>(sampling.taps.size()),
                               row.grids[i] * column_grids + column.grids[j], row.offsets[i],
                               column.offsets[j]});
    }
  }
  return sampling;
}

std::vector<Sampling> adjoint_samplings(const ConvAxis& rows, const ConvAxis& columns) {
  std::vector<Sampling> samplings;
  for (int64_t p = 0; p < rows.stride && p < rows.input; ++p) {
    for (int64_t q = 0; q < columns.stride && q < columns.input; ++q) {
      Sampling sampling{{p, q, grid_size(rows.input, p, rows.stride),
                         grid_size(columns.input, q, columns.stride)},
                        rows.stride,
                        columns.stride,
                        {},
                        1,
                        1,
                        {}};
      for (int64_t i = 0; i < rows.kernel; ++i) {
        if (!is_read_through(rows, p, i)) continue;
        for (int64_t j = 0; j < columns.kernel; ++j) {
          if (!is_read_through(columns, q, j)) continue;
          sampling.sources = {{0, 0, rows.output, columns.output}};
          sampling.taps.push_back({i * columns.kernel + j, 0, adjoint_offset(rows, p, i),
                                   adjoint_offset(columns, q, j)});
        }
      }
      samplings.push_back(std::move(sampling));
    }
  }
  return samplings;
}

}  // namespace sketchlayers::cpu
