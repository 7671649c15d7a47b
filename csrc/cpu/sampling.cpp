#include "cpu/sampling.h"

#include <cstddef>
#include <utility>

namespace sketchlayers::cpu {
namespace {

// The index of this grid among the sources, which it joins if it is new.
int64_t find_source(std::vector<ImageGrid>& sources, const ImageGrid& grid) {
  for (std::size_t i = 0; i < sources.size(); ++i) {
    if (sources[i].row_phase == grid.row_phase && sources[i].column_phase == grid.column_phase) {
      return static_cast<int64_t>(i);
    }
  }
  sources.push_back(grid);
  return static_cast<int64_t>(sources.size()) - 1;
}

}  // namespace

Sampling forward_sampling(const ConvAxis& rows, const ConvAxis& columns) {
  Sampling sampling{{0, 0, rows.output, columns.output}, 1, 1, {}, rows.stride, columns.stride, {}};
  for (int64_t i = 0; i < rows.kernel; ++i) {
    const AxisTap row = forward_tap(rows, i);
    for (int64_t j = 0; j < columns.kernel; ++j) {
      const AxisTap column = forward_tap(columns, j);
      const ImageGrid grid{row.phase, column.phase, grid_size(rows.input, row.phase, rows.stride),
                           grid_size(columns.input, column.phase, columns.stride)};
      sampling.taps.push_back(
          {i * columns.kernel + j, find_source(sampling.sources, grid), row.offset, column.offset});
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
