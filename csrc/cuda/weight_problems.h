// The dense weight and its adjoint as products for `DecodedGemm`. Spatial mixing multiplies whole
// rows of n = channels * positions columns; channel mixing multiplies position by position.
#pragma once

#include "cuda/decoded_gemm.h"
#include "signs.h"

namespace sketchlayers::cuda {

// The sizes of a sketched weight, of one group.
struct WeightSizes {
  int64_t groups;
  int64_t rank;
  int64_t outputs;
  int64_t channels;
  int64_t positions;
  bool mixes_space;  // false: channel mixing, a batch of products for every position

  SKETCHLAYERS_HOST_DEVICE int64_t inputs() const { return channels * positions; }
  SKETCHLAYERS_HOST_DEVICE int64_t batches() const {
    return mixes_space ? groups : groups * positions;
  }
  SKETCHLAYERS_HOST_DEVICE int64_t group(int64_t batch) const {
    return mixes_space ? batch : batch / positions;
  }
  // Columns of U2 and, times positions where those are not mixed, of the weight.
  SKETCHLAYERS_HOST_DEVICE int64_t columns() const { return mixes_space ? inputs() : channels; }
  SKETCHLAYERS_HOST_DEVICE int64_t second_rank() const {
    return mixes_space ? rank * positions : rank;
  }
  // Column of (channel, position) that column `column` of a batch is.
  SKETCHLAYERS_HOST_DEVICE int64_t input(int64_t batch, int64_t column) const {
    return mixes_space ? column : column * positions + batch % positions;
  }
  // Column of S2 (outputs, rank * positions) that row `row` of U2 goes with.
  SKETCHLAYERS_HOST_DEVICE int64_t second(int64_t batch, int64_t row) const {
    return mixes_space ? row : row * positions + batch % positions;
  }
};

// Signs (groups, rows, words) as float32 numbers.
struct SignRows {
  const int32_t* words;
  int64_t rows;
  int64_t row_words;

  SKETCHLAYERS_HOST_DEVICE float at(int64_t group, int64_t row, int64_t column) const {
    return sign_at<float>(words + (group * rows + row) * row_words, column);
  }
};

// Where the elements (output, channel, position) of a weight lie.
template <typename T>
struct WeightView {
  T* data;
  int64_t output_stride;
  int64_t channel_stride;
  int64_t position_stride;
  int64_t positions;

  SKETCHLAYERS_HOST_DEVICE T* at(int64_t output, int64_t input) const {
    return data + output * output_stride + offset(input);
  }

 private:
  // Divides only where it must, and then 32 bits, which hold the inputs of what is taken.
  SKETCHLAYERS_HOST_DEVICE int64_t offset(int64_t input) const {
    if (positions == 1) return input * channel_stride;
    if (channel_stride == positions * position_stride) return input * position_stride;
    const uint32_t channel = static_cast<uint32_t>(input) / static_cast<uint32_t>(positions);
    return channel * channel_stride + (input - channel * positions) * position_stride;
  }
};

// What all problems have for `DecodedGemm`.
struct WeightProduct {
  static constexpr bool kLeftAlongDepth = true;
  int64_t batches, rows, columns, depth;
  WeightSizes sizes;
};

// W_hat = c frame o (A S1 + S2 B)
template <typename T>
struct WeightProblem : WeightProduct {
  static constexpr bool kRightAlongDepth = false;
  const T* s1;  // (groups, rank, inputs)
  const T* s2;  // (groups, outputs, rank * positions)
  SignRows u1, u2;
  SignRows frame;  // words may be null
  float u1_scale, u2_scale, scale;
  WeightView<T> weight;

  void set_sizes(const WeightSizes& of) {
    WeightProduct::operator=(
        {of.batches(), of.outputs, of.columns(), of.rank + of.second_rank(), of});
  }

  SKETCHLAYERS_INLINE float left(int64_t batch, int64_t row, int64_t k) const {
    const int64_t group = sizes.group(batch);
    if (k < sizes.rank) return u1_scale * u1.at(group, k, row);
    return static_cast<float>(s2[(group * sizes.outputs + row) * sizes.rank * sizes.positions +
                                 sizes.second(batch, k - sizes.rank)]);
  }
  SKETCHLAYERS_INLINE float right(int64_t batch, int64_t k, int64_t column) const {
    const int64_t group = sizes.group(batch);
    if (k >= sizes.rank) return u2_scale * u2.at(group, k - sizes.rank, column);
    return static_cast<float>(
        s1[(group * sizes.rank + k) * sizes.inputs() + sizes.input(batch, column)]);
  }
  SKETCHLAYERS_INLINE void store(int64_t batch, int64_t row, int64_t column, float sum) const {
    const int64_t group = sizes.group(batch);
    const int64_t input = sizes.input(batch, column);
    float value = scale * sum;
    if (frame.words != nullptr) value *= frame.at(group, row, input);
    *weight.at(group * sizes.outputs + row, input) = static_cast<T>(value);
  }
};

// The gradient of the weight, with the frame's signs.
template <typename T>
struct WeightGradient {
  WeightView<const T> grad;
  SignRows frame;  // words may be null

  SKETCHLAYERS_INLINE float at(const WeightSizes& sizes, int64_t group, int64_t output,
                               int64_t input) const {
    const float value = static_cast<float>(*grad.at(group * sizes.outputs + output, input));
    return frame.words == nullptr ? value : value * frame.at(group, output, input);
  }
};

// grad_s1 = c A^T G, the same for both mixings.
template <typename T>
struct FirstGradientProblem : WeightProduct {
  static constexpr bool kRightAlongDepth = false;
  WeightGradient<T> gradient;
  SignRows u1;
  float scale;  // c times that of U1
  T* grad_s1;   // (groups, rank, inputs)

  void set_sizes(const WeightSizes& of) {
    WeightProduct::operator=({of.groups, of.rank, of.inputs(), of.outputs, of});
  }

  SKETCHLAYERS_INLINE float left(int64_t group, int64_t row, int64_t k) const {
    return u1.at(group, row, k);
  }
  SKETCHLAYERS_INLINE float right(int64_t group, int64_t k, int64_t column) const {
    return gradient.at(sizes, group, k, column);
  }
  SKETCHLAYERS_INLINE void store(int64_t group, int64_t row, int64_t column, float sum) const {
    grad_s1[(group * rows + row) * columns + column] = static_cast<T>(scale * sum);
  }
};

// grad_s2 = c G B^T
template <typename T>
struct SecondGradientProblem : WeightProduct {
  static constexpr bool kRightAlongDepth = true;
  WeightGradient<T> gradient;
  SignRows u2;
  float scale;  // c times that of U2
  T* grad_s2;   // (groups, outputs, rank * positions)

  void set_sizes(const WeightSizes& of) {
    WeightProduct::operator=({of.batches(), of.outputs, of.second_rank(), of.columns(), of});
  }

  SKETCHLAYERS_INLINE float left(int64_t batch, int64_t row, int64_t k) const {
    return gradient.at(sizes, sizes.group(batch), row, sizes.input(batch, k));
  }
  SKETCHLAYERS_INLINE float right(int64_t batch, int64_t k, int64_t column) const {
    return u2.at(sizes.group(batch), column, k);
  }
  SKETCHLAYERS_INLINE void store(int64_t batch, int64_t row, int64_t column, float sum) const {
    grad_s2[(sizes.group(batch) * sizes.outputs + row) * sizes.rank * sizes.positions +
            sizes.second(batch, column)] = static_cast<T>(scale * sum);
  }
};

}  // namespace sketchlayers::cuda
