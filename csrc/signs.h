// Packed Rademacher signs. This is a file format (checkpoints store only the seed): it never
// changes.
//
// A sign is a pure function of (seed, matrix, row, column): Philox 4x32-10 with the seed as key and
// the counter (column >> 7, row, matrix, version); the 128 output bits, least significant first,
// are 128 neighbouring columns; bit 1 means -1. A row is padded to whole blocks of 128 columns;
// padding keeps the generator's bits and is ignored.
#pragma once

#include <cstdint>

#include "philox.h"

namespace sketchlayers {

constexpr uint32_t kSignFormatVersion = 1;
constexpr int kSignsPerWord = 32;
constexpr int kSignsPerBlock = 128;
constexpr int kWordsPerBlock = kSignsPerBlock / kSignsPerWord;

// Works for int64_t and c10::SymInt.
template <typename Int>
Int sign_words(const Int& columns) {
  return (columns + (kSignsPerBlock - 1)) / kSignsPerBlock * kWordsPerBlock;
}

SKETCHLAYERS_HOST_DEVICE inline PhiloxBlock sign_block(uint64_t seed, uint32_t matrix, uint32_t row,
                                                       uint32_t block) {
  return philox4x32({{block, row, matrix, kSignFormatVersion}}, seed);
}

// The sign of `column` as +1 or -1 in the type of a computation.
template <typename T>
SKETCHLAYERS_HOST_DEVICE inline T sign_at(const int32_t* packed_row, int64_t column) {
  const uint32_t word = static_cast<uint32_t>(packed_row[column / kSignsPerWord]);
  return (word >> (column % kSignsPerWord)) & 1u ? T(-1) : T(1);
}

}  // namespace sketchlayers
