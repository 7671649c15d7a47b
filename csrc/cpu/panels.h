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

constexpr int64_t whole_lines(int64_t numbers) {
  return (numbers + kLineNumbers - 1) / kLineNumbers * kLineNumbers;
}

// Columns of a right side as micro-kernels take them, of not more depth than kPanelDepth: tile
// after tile, in each a row of pairs, two numbers below each other, for every two of depth. Zeros
// fill it up to whole lines of depth (a rest takes twice as long).
constexpr int64_t kPanelDepth = 512;

class Panel {
 public:
  static int64_t words(int64_t depth, int64_t width) { return whole_lines(depth) / 2 * width; }

  // `width` in whole steps; `memory` begins with a line of the cache.
  Panel(uint32_t* memory, int64_t depth, int64_t width)
      : memory_(memory), depth_(depth), width_(width) {}

  // From row `top` (a multiple of 32) and column `first` on; columns from `columns` on are zeros.
  void pack(const RightSide& right, int64_t top, int64_t first, int64_t columns) const;

  // sums = left (rows, depth) times the panel, plus what is there if `add`. What follows in a row
  // of `left` are zeros, to a whole line.
  void multiply(const c10::BFloat16* left, int64_t left_row, int64_t rows, float* sums,
                int64_t sums_row, bool add) const;

 private:
  uint32_t* memory_;
  int64_t depth_;
  int64_t width_;
};

// Gives the thread's matrix registers back; after the last product of a task.
void end_products();

// scale * left (rows, depth) times right (depth, columns). What follows in a row of `left` are
// zeros, to a whole line.
struct Term {
  const c10::BFloat16* left;
  int64_t left_row;
  int64_t depth;
  RightSide right;
  double scale = 1;
};

// Where element (m, n) of a result lies: data[m * row + n * column].
struct Result {
  c10::BFloat16* data;
  int64_t row;
  int64_t column;
};

// result (rows, columns) = sum of the terms + bias (of columns, or null).
struct Multiplication {
  std::vector<Term> terms;
  int64_t rows;
  int64_t columns;
  const float* bias;
  Result result;
};

// All of them at once, with sums in float32.
void multiply(const std::vector<Multiplication>& all);

}  // namespace sketchlayers::cpu
