// What a thread does of a hashed matrix; on host and device.
#pragma once

#include <cmath>
#include <cstdint>

#include "hashes.h"

namespace sketchlayers::cuda {

constexpr int kMostTables = 256;

// Where the values of each tap begin, and how many there are: an argument of a kernel.
struct DeviceTables {
  int taps;
  uint32_t first[kMostTables];
  uint32_t buckets[kMostTables];
};

// A matrix whose entries are hashed; a thread has the entries of one block of hashes.
struct HashedMatrix {
  int64_t rows;
  int64_t columns;
  int64_t blocks;  // of each row

  // Calls body(place in the matrix, place in the values, is negative) for the entries of block i.
  template <typename Body>
  SKETCHLAYERS_HOST_DEVICE void visit(int64_t i, uint64_t seed, const DeviceTables& tables,
                                      const Body& body) const {
    const int64_t row = i / blocks;
    const int64_t block = i % blocks;
    const PhiloxBlock hashes =
        hash_block(seed, static_cast<uint32_t>(row), static_cast<uint32_t>(block));
    const int64_t column = block * kHashesPerBlock;
    int tap = static_cast<int>(column % tables.taps);
    for (int j = 0; j < kHashesPerBlock; ++j) {
      if (column + j < columns) {
        const uint32_t hash = hashes.word[j];
        const int64_t value = int64_t{tables.first[tap]} + hash_bucket(hash, tables.buckets[tap]);
        body(row * columns + column + j, value, hash_is_negative(hash));
      }
      if (++tap == tables.taps) tap = 0;
    }
  }
};

// Sums of a gradient as whole numbers: their order does not matter, so atomic additions give the
// same result every time. The unit is a power of two, as small as lets the sum of all entries, each
// as large as the largest, fit in 63 bits. For 2^20 entries that is 2^-42 of the largest, far below
// what float32 resolves.
struct FixedPoint {
  double per_unit;  // units in 1; 0 for a gradient of zeros, NaN for one that is not finite

  SKETCHLAYERS_HOST_DEVICE static FixedPoint of(double largest, int64_t count) {
    if (!(largest < static_cast<double>(INFINITY))) return {static_cast<double>(NAN)};
    if (largest == 0) return {0};
    int size = 0, entries = 0;
    frexp(largest, &size);                        // largest < 2^size
    frexp(static_cast<double>(count), &entries);  // count < 2^entries
    return {ldexp(1.0, 62 - size - entries)};
  }

  SKETCHLAYERS_HOST_DEVICE long long units(double number) const {
    return static_cast<long long>(rint(number * per_unit));
  }

  SKETCHLAYERS_HOST_DEVICE double number(long long units) const {
    return per_unit == 0 ? 0.0 : static_cast<double>(units) / per_unit;
  }
};

}  // namespace sketchlayers::cuda
