// A convolution as a chain in one pass over tiles of pixels, without an intermediate map in memory:
//   y = last * (core * (first * x)) + bias,
// 1x1, h x w and 1x1. The core mixes all features, or is depthwise: every feature has a filter of
// its own. The first and the last factor may be missing.
#pragma once

#include <cstdint>

#include "cpu/image.h"
#include "cpu/sampling.h"

namespace sketchlayers::cpu {

// Sizes are those of one group; weights are those of all groups, one after the other.
struct ChainConv {
  int64_t images;
  int64_t groups;
  int64_t inputs;
  int64_t outputs;
  int64_t before;      // features that the core reads: `inputs` without a first factor
  int64_t after;       // features that it makes: `outputs` without a last factor
  int64_t positions;   // of a filter
  bool depthwise;      // then before == after
  const float* first;  // (before, inputs), or null
  const float* core;   // (after, before, positions), or (after, positions) where depthwise
  const float* last;   // (outputs, after), or null
  const float* bias;   // of all groups, or null
};

// Whether the buffers stay small: taps far apart would need rows upon rows of zeros.
bool fits(const ChainConv& conv, const Sampling& sampling);

template <typename T>
void run(const ChainConv& conv, const Sampling& sampling, const ImageView<const T>& input,
         const ImageView<T>& output);

}  // namespace sketchlayers::cpu
