// A tile in shared memory whose rows are pixels and whose columns are a chunk of channels, read
// from images of any strides.
#pragma once

#include "cuda/fragments.h"

namespace sketchlayers::cuda {

// Images (batch, groups * channels, height, width).
struct Images {
  const void* data;
  int64_t strides[4];   // batch, channel, row, column
  int channels;         // of one group
  bool units;           // 16 bytes of channels can be read at once
  bool channels_first;  // neighbouring columns are nearer than neighbouring channels

  // Of the first channel of a pixel.
  SKETCHLAYERS_INLINE int64_t offset(int64_t image, int64_t y, int64_t x) const {
    return image * strides[0] + y * strides[2] + x * strides[3];
  }
};

// `table` tells where each row's pixel starts; below 0 the row is zeros.
template <typename Traits>
class RowTile {
 public:
  using T = typename Traits::Type;

  SKETCHLAYERS_INLINE RowTile(unsigned char* tile, int rows, const int64_t* table,
                              const Images& images, int group, int chunk)
      : tile_(tile),
        rows_(rows),
        table_(table),
        images_(images),
        data_(static_cast<const T*>(images.data) +
              static_cast<int64_t>(group) * images.channels * images.strides[1]),
        first_channel_(static_cast<int64_t>(chunk) * Traits::kChunk) {}

  // One thread's part.
  SKETCHLAYERS_INLINE void load(int thread) const {
    if (images_.units) {
      load_units(thread);
    } else if (images_.channels_first) {
      load_columns(thread);
    } else {
      load_elements(thread);
    }
  }

 private:
  SKETCHLAYERS_INLINE void load_units(int thread) const {
    const int unit = thread % Traits::kChunkUnits;
    const int64_t channel = first_channel_ + unit * Traits::kPerUnit;
    const bool inside = channel < images_.channels;
    const T* const from = data_ + (inside ? channel : 0);
    unsigned char* const to = tile_ + unit * kUnitBytes;
    for (int row = thread / Traits::kChunkUnits; row < rows_;
         row += Traits::kThreads / Traits::kChunkUnits) {
      const int64_t offset = table_[row];
      copy_async(to + row * Traits::kPitch, inside && offset >= 0 ? from + offset : nullptr);
    }
  }

  SKETCHLAYERS_INLINE T element(int row, int place) const {
    const int64_t offset = table_[row];
    const int64_t channel = first_channel_ + place;
    if (channel >= images_.channels || offset < 0) return T(0.0f);
    return data_[offset + channel * images_.strides[1]];
  }

  // Neighbouring threads read neighbouring channels.
  SKETCHLAYERS_INLINE void load_elements(int thread) const {
    SKETCHLAYERS_UNROLL_BY(Traits::kLoadUnroll)
    for (int i = thread; i < rows_ * Traits::kChunk; i += Traits::kThreads) {
      const int row = i / Traits::kChunk;
      const int place = i % Traits::kChunk;
      reinterpret_cast<T*>(tile_ + row * Traits::kPitch)[place] = element(row, place);
    }
  }

  // Neighbouring threads read neighbouring columns, and write words of channels. A thread keeps to
  // its rows; threads that rows would not need share the channels.
  SKETCHLAYERS_INLINE void load_columns(int thread) const {
    constexpr int kWord = 4 / static_cast<int>(sizeof(T));
    const int padded = (rows_ + kWarpSize - 1) / kWarpSize * kWarpSize;
    const int width = padded < Traits::kThreads ? padded : Traits::kThreads;
    const int parts = Traits::kThreads / width;
    const int part = thread / width;
    if (part >= parts) return;
    for (int row = thread % width; row < rows_; row += width) {
      uint32_t* const to = reinterpret_cast<uint32_t*>(tile_ + row * Traits::kPitch);
      SKETCHLAYERS_UNROLL_BY(Traits::kLoadUnroll)
      for (int word = part; word < Traits::kChunk / kWord; word += parts) {
        T elements[kWord];
        SKETCHLAYERS_UNROLL
        for (int k = 0; k < kWord; ++k) elements[k] = element(row, word * kWord + k);
        memcpy(to + word, static_cast<const void*>(elements), sizeof(uint32_t));
      }
    }
  }

  unsigned char* tile_;
  int rows_;
  const int64_t* table_;
  const Images& images_;
  const T* data_;  // the group's first channel
  int64_t first_channel_;
};

}  // namespace sketchlayers::cuda
