// The inner loops of the CPU's kernels, on raw pointers and in float32, compiled once for each
// instruction set and chosen when the program runs.
#pragma once

#include <cstdint>
#include <utility>

namespace sketchlayers::cpu {

// Columns of a product come in whole steps; buffers are padded to them. A row's last step may hold
// anything: columns never mix.
constexpr int64_t kColumnStep = 16;

constexpr int64_t whole_steps(int64_t columns) {
  return (columns + kColumnStep - 1) / kColumnStep * kColumnStep;
}

// One part of a sum of products,
//   c[m][n] = sum_{o < outer, t < taps} w[m * w_row + o * w_outer + w_tap[t]]
//                                     * b[o * b_outer + b_tap[t] + n].
// A matrix product has one tap with offset 0. The implicit gather of a convolution is nothing but
// a tap's offset in b, so neither patches nor shifted copies exist.
struct Product {
  const float* w;
  int64_t w_row;
  int64_t w_outer;
  const int32_t* w_tap;
  const float* b;
  int64_t b_outer;
  const int32_t* b_tap;
  int64_t outer;
  int64_t taps;
  // Or null: bit i of mask[t * mask_tap + s] says whether b counts for tap t in column
  // s * kColumnStep + i. Where it does not, b is not even read.
  const uint16_t* mask = nullptr;
  int64_t mask_tap = 0;
};

// The tap of a plain matrix product.
constexpr int32_t kNoOffset[1] = {0};

struct VectorKernels {
  bool takes_masks;  // whether the instruction set has them

  // out[m][n] = sum of the parts, plus bias[m] unless it is null, plus out[m][n] if `add`; columns
  // are a multiple of kColumnStep.
  void (*product)(const Product* parts, int count, int64_t rows, int64_t columns, const float* bias,
                  float* out, int64_t out_row, bool add);

  // out[m][n] = sum over parts and taps of w[m * w_row + w_tap[t]] * b[m * b_outer + b_tap[t] + n]:
  // every row has a b of its own. All taps of a part have its mask (mask_tap is 0).
  void (*depthwise)(const Product* parts, int count, int64_t rows, int64_t columns, float* out,
                    int64_t out_row);

  // The same where channels lie together: for pixels p and columns n (whole steps)
  //   out[p * out_step + n] = sum over taps t of w[t * w_row + n] * b[p * b_step + b_tap[t] + n].
  void (*depthwise_pixels)(const float* w, int64_t w_row, int64_t taps, const float* b,
                           int64_t b_step, const int32_t* b_tap, int64_t pixels, int64_t columns,
                           float* out, int64_t out_step);

  // Rows of `out` get `before` zeros, a row of `in`, and `after` zeros.
  void (*copy_rows)(const float* in, int64_t in_row, int64_t rows, int64_t columns, float* out,
                    int64_t out_row, int64_t before, int64_t after);

  // out[n][m] = in[m][n]; if `padded`, rows of `out` have room for whole steps, and what follows a
  // row may be overwritten.
  void (*transpose)(const float* in, int64_t in_row, int64_t rows, int64_t columns, float* out,
                    int64_t out_row, bool padded);

  // Pairs of numbers of 16 bits, one of each row.
  void (*interleave)(const uint16_t* upper, const uint16_t* lower, int64_t count, uint32_t* out);

  // And the way back.
  void (*separate)(const uint32_t* pairs, int64_t count, uint16_t* upper, uint16_t* lower);

  // out[i] is `pair`, two numbers of 16 bits, with the signs from bits `shift` and `shift` + 1 of
  // words[i].
  void (*sign_pairs_of_words)(const uint32_t* words, int64_t count, int shift, uint32_t pair,
                              uint32_t* out);
  // The same with the signs from bit i of `upper` and of `lower`, up to 32.
  void (*sign_pairs_of_bits)(uint32_t upper, uint32_t lower, int64_t count, uint32_t pair,
                             uint32_t* out);

  // out[i] = in[i] * factor + bias[i] (or 0 where it is null), rounded to bfloat16.
  void (*to_bfloat16)(const float* in, int64_t count, float factor, const float* bias,
                      uint16_t* out);

  // Rows rounded to bfloat16, in whole steps of columns.
  void (*round_rows)(const float* in, int64_t in_row, int64_t rows, int64_t columns, uint16_t* out,
                     int64_t out_row);

  // The features of target pixels from those of source pixels, sources[p * taps + t] for tap t of
  // pixel p, or -1, where all are zeros. Of a row of `made`, `features` for each tap are summed; as
  // many of `mixed` are handed on for each tap:
  //   out[p] = [mixed[source of tap 0], mixed[source of tap 1], ..., sum over taps t of
  //             made[source of t][t * features ...]],
  // sums rounded to bfloat16, and zeros up to a whole line. Without `made` there are no sums. Rows
  // of `made` and `mixed` have room for whole steps from the last feature on; what follows a row of
  // `out` may be overwritten.
  void (*gather_features)(const float* made, int64_t made_row, const uint16_t* mixed,
                          int64_t mixed_row, const int32_t* sources, int64_t taps, int64_t features,
                          int64_t pixels, uint16_t* out, int64_t out_row);

  // out[i] = sign(start + i) * magnitude for i < whole_steps(count); start is a multiple of
  // kColumnStep.
  void (*expand_signs)(const int32_t* packed_row, int64_t start, int64_t count, float magnitude,
                       float* out);

  // For rows j and up to kFewVectors vectors x (padded with zeros to whole steps):
  //   dense[b][j] = s[j] . x[b],   signed_[b][j] = signs[j] . x[b],
  // each row of s read once, signs applied bit by bit in registers.
  template <typename S>
  using SketchVectors = void (*)(const S* s, int64_t s_row, const int32_t* signs, int64_t words,
                                 int64_t rows, int64_t length, const float* x, int64_t x_row,
                                 int64_t batch, float* dense, float* signed_, int64_t out_row);
  SketchVectors<float> sketch_vectors;
  SketchVectors<uint16_t> sketch_vectors_bfloat16;

  // The other half, for outputs [first, first + count), first a multiple of kColumnStep:
  //   y[b][o] = bias[o] + s[o] . dense[b] + sum_j signs[j][o] signed_[b][j],
  // `dense` padded with zeros to whole steps.
  template <typename S>
  using CombineVectors = void (*)(const S* s, int64_t s_row, const int32_t* signs, int64_t words,
                                  int64_t first, int64_t count, int64_t rank, const float* dense,
                                  const float* signed_, int64_t in_row, int64_t batch,
                                  const float* bias, float* y, int64_t y_row);
  CombineVectors<float> combine_vectors;
  CombineVectors<uint16_t> combine_vectors_bfloat16;
};

constexpr int64_t kFewVectors = 4;

const VectorKernels& avx512_kernels();
const VectorKernels& avx2_kernels();
const VectorKernels& portable_kernels();

// The best that this processor has, or what ATEN_CPU_CAPABILITY allows.
const VectorKernels& vector_kernels();

}  // namespace sketchlayers::cpu
