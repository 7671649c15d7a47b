// The factored convolution with channel mixing in one pass over tiles of pixels,
//   y = A (F1 * x) + F2 * (B x) + bias,
// for forward calls and, with the factors' parts exchanged, for the gradient of the input. A fully
// connected layer is the 1x1 convolution whose pixels are the rows of its input.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/image.h"
#include "cpu/sampling.h"

namespace sketchlayers::cpu {

// Filters data[row * .. + channel * .. + position], with the positions of a filter together.
struct Filters {
  const float* data;
  int64_t group;
  int64_t row;
  int64_t channel;
};

// Packed signs (rank, columns) times a magnitude.
struct Signs {
  const int32_t* packed;
  int64_t group;
  int64_t words;
  float magnitude;

  const int32_t* row(int64_t which_group, int64_t row) const {
    return packed + which_group * group + row * words;
  }
};

// Sizes are those of one group.
struct TwoSidedConv {
  int64_t images;
  int64_t groups;
  int64_t rank;
  int64_t inputs;
  int64_t outputs;
  int64_t positions;   // of a filter
  Filters first;       // rank rows, a channel for each input
  Filters second;      // a row for each output, rank channels
  Signs input_signs;   // B (rank, inputs)
  Signs output_signs;  // A^T (rank, outputs)
  const float* bias;   // of all groups, or null
};

// Whether the buffers stay small: taps far apart would need rows upon rows of zeros.
bool fits(const TwoSidedConv& conv, const Sampling& sampling);

template <typename T>
void run(const TwoSidedConv& conv, const Sampling& sampling, const ImageView<const T>& input,
         const ImageView<T>& output);

}  // namespace sketchlayers::cpu
