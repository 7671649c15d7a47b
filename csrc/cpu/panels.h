// Products of bfloat16 with matrices of numbers or of signs by oneDNN's micro-kernels, which
// PyTorch hands on to extensions: tiles of the matrix are packed as those take them, signs from
// their bits.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>
#include <vector>

namespace sketchlayers::cpu {

constexpr int64_t kLineNumbers = 32;  // in a line of the cache

// The right side (depth, columns) of a product.
struct RightSide {
  const c10::BFloat16* numbers;  // or null
  const int32_t* signs;          // packed; a bit of 1 is -1
  int64_t row;                   // numbers, or words, from one row in memory to the next
  bool by_columns;               // whether a row in memory is a column of the matrix
};

// left (rows, depth) times right (depth, columns). What follows in a row of `left` are zeros, to a
// whole line.
struct Term {
  const c10::BFloat16* left;
  int64_t left_row;
  int64_t depth;
  RightSide right;
};

// Where element (m, n) of a result lies: data[m * row + n * column].
struct Result {
  c10::BFloat16* data;
  int64_t row;
  int64_t column;
};

// result (rows, columns) = scale * sum of the terms + bias (of columns, or null).
struct Multiplication {
  std::vector<Term> terms;
  int64_t rows;
  int64_t columns;
  double scale;
  const float* bias;
  Result result;
};

// Whether this processor has instructions for it: AMX.
bool multiplies_bfloat16();

// All of them at once, with sums in float32.
void multiply(const std::vector<Multiplication>& all);

}  // namespace sketchlayers::cpu
