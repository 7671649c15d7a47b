// Which positions of one image are combined with which of another: the taps of a convolution, and
// of its adjoint, with strides taken apart into grids (geometry.h).
#pragma once

#include <cstdint>
#include <vector>

#include "geometry.h"

namespace sketchlayers::cpu {

// The axis of a convolution that takes every position for itself.
inline ConvAxis identity_axis(int64_t size) { return {size, size, 1, 1, 0, 1}; }

// Positions index * step + phase along both axes of an image.
struct ImageGrid {
  int64_t row_phase;
  int64_t column_phase;
  int64_t rows;
  int64_t columns;
};

struct Tap {
  int64_t filter;  // position in the filter, row by row
  int64_t source;  // which of the source grids
  int64_t row;     // index read, less index written
  int64_t column;
};

struct Sampling {
  ImageGrid target;
  int64_t target_row_step;
  int64_t target_column_step;
  std::vector<ImageGrid> sources;
  int64_t source_row_step;
  int64_t source_column_step;
  std::vector<Tap> taps;
};

// The outputs, which read grids of the input.
Sampling forward_sampling(const ConvAxis& rows, const ConvAxis& columns);

// The grids of the input, one for each phase, which read the outputs that they contributed to.
std::vector<Sampling> adjoint_samplings(const ConvAxis& rows, const ConvAxis& columns);

}  // namespace sketchlayers::cpu
