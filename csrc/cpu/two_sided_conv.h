// The factored convolution in one pass over tiles of pixels, as the sum of two branches
//   y = sum over branches of  out * (in * x)  + bias,
// each a factor that takes the input to a few features and one that takes these to the output:
//
//                        first branch                  second branch
//   forward, channel     in = S1 (taps), out = A       in = B, out = S2 (taps)
//   forward, spatial     in = S1 (taps), out = A       in = B (taps), out = S2
//
// For the gradient of the input the same with every factor transposed and in and out exchanged. A
// fully connected layer is the 1x1 convolution whose pixels are the rows of its input.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/image.h"
#include "cpu/sampling.h"

namespace sketchlayers::cpu {

// Packed signs times a magnitude; `packed` is null where there are none.
struct Signs {
  const int32_t* packed = nullptr;
  int64_t group = 0;
  int64_t words = 0;
  float magnitude = 1;

  const int32_t* row(int64_t which_group, int64_t row) const {
    return packed + which_group * group + row * words;
  }
};

// A matrix between channels and features: numbers or signs; with `taps` it has an entry for every
// position of the filter, which lie together.
struct Factor {
  // Numbers: data[group, feature, channel] with these strides.
  const float* data = nullptr;
  int64_t group = 0;
  int64_t feature = 0;
  int64_t channel = 0;
  // Or signs (features, channels * positions).
  Signs signs;
  bool taps = false;
};

// With blocks on one side every block of features goes with its own block of that side's channels,
// and the factor there has an entry for each feature of a block and each channel.
struct Branch {
  int64_t features;  // of all blocks
  Factor in;
  Factor out;
  int64_t in_blocks = 1;
  int64_t out_blocks = 1;
};

// Sizes are those of one group.
struct TwoSidedConv {
  int64_t images;
  int64_t groups;
  int64_t inputs;
  int64_t outputs;
  int64_t positions;  // of a filter
  std::vector<Branch> branches;
  const float* bias = nullptr;  // of all groups, or null

  int64_t features() const {
    int64_t sum = 0;
    for (const Branch& branch : branches) sum += branch.features;
    return sum;
  }
};

// Whether the buffers stay small: taps far apart would need rows upon rows of zeros.
bool fits(const TwoSidedConv& conv, const Sampling& sampling);

template <typename T>
void run(const TwoSidedConv& conv, const Sampling& sampling, const ImageView<const T>& input,
         const ImageView<T>& output);

// in * x alone, of the only branch; its features are the output's channels, group by group.
template <typename T>
void run_features(const TwoSidedConv& conv, const Sampling& sampling,
                  const ImageView<const T>& input, const ImageView<float>& output);

}  // namespace sketchlayers::cpu
