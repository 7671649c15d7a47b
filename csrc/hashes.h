// Hashes of a weight's entries. This is a file format (checkpoints store only the seed): it never
// changes.
//
// The hash of an entry is a pure function of (seed, row, column): Philox 4x32-10 with the seed as
// key and the counter (column >> 2, row, 0, version); of the four output words, four neighbouring
// columns have one each. Bit 0 set means the sign -1. The other 31 bits, as a fraction of 2^31, say
// which bucket of a table it is.
#pragma once

#include <cstdint>

#include "philox.h"

namespace sketchlayers {

constexpr uint32_t kHashFormatVersion = 2;  // 1 is that of the signs (signs.h)
constexpr int kHashesPerBlock = 4;
constexpr int kHashBits = 31;

SKETCHLAYERS_HOST_DEVICE inline PhiloxBlock hash_block(uint64_t seed, uint32_t row,
                                                       uint32_t block) {
  return philox4x32({{block, row, 0u, kHashFormatVersion}}, seed);
}

SKETCHLAYERS_HOST_DEVICE inline bool hash_is_negative(uint32_t hash) { return hash & 1u; }

// Which of `buckets` <= 2^31.
SKETCHLAYERS_HOST_DEVICE inline uint32_t hash_bucket(uint32_t hash, uint32_t buckets) {
  return static_cast<uint32_t>((static_cast<uint64_t>(hash >> 1) * buckets) >> kHashBits);
}

}  // namespace sketchlayers
