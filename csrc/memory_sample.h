// A hash of a few words spread evenly over memory, to notice writes that nothing else tells of.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace sketchlayers {

constexpr int64_t kSampledWords = 128;

// Reads the first and the last bytes always, and all of up to 128 words of 8 bytes.
inline uint64_t sample_memory(const void* memory, int64_t bytes) {
  constexpr int64_t kWord = sizeof(uint64_t);
  const auto* begin = static_cast<const unsigned char*>(memory);
  uint64_t hash = static_cast<uint64_t>(bytes);
  const auto mix = [&](int64_t offset, int64_t size) {
    uint64_t word = 0;
    std::memcpy(&word, begin + offset, static_cast<size_t>(size));
    // The constants and the shift are those of MurmurHash3's finalizer.
    hash = (hash ^ word) * 0xff51afd7ed558ccdULL;
    hash ^= hash >> 33;
  };
  if (bytes < kWord) {
    if (bytes > 0) mix(0, bytes);
    return hash;
  }
  const int64_t last = bytes - kWord, words = (bytes + kWord - 1) / kWord;
  const int64_t count = std::min(words, kSampledWords);
  for (int64_t i = 0; i < count; ++i) {
    // Whole words but for the last one, which ends where the memory does.
    const int64_t word = count > 1 ? i * (words - 1) / (count - 1) : 0;
    mix(std::min(word * kWord, last), kWord);
  }
  return hash;
}

}  // namespace sketchlayers
