// A tile in shared memory whose rows are pixels and whose columns are a chunk of channels, read
// from images of any strides.
#pragma once

#include "cuda/fragments.h"

namespace sketchlayers::cuda {

// Where the channels of pixels lie.
struct ChannelSource {
  const void* data;  // of the group's first channel
  int64_t channels;  // of the group
  int64_t channel_stride;
  bool units;           // 16 bytes of channels can be read at once
  bool channels_first;  // neighbouring columns are nearer than neighbouring channels
};

// One thread's part. `table` tells where each row's pixel starts; below 0 the row is zeros.
template <typename Traits>
class RowTile {
 public:
  using T = typename Traits::Type;

  SKETCHLAYERS_INLINE static void load(int thread, unsigned char* tile, int rows,
                                       const int64_t* table, const ChannelSource& source,
                                       int64_t first_channel) {
    if (source.units) {
      load_units(thread, tile, rows, table, source, first_channel);
    } else if (source.channels_first) {
      load_columns(thread, tile, rows, table, source, first_channel);
    } else {
      load_elements(thread, tile, rows, table, source, first_channel);
    }
  }

 private:
  SKETCHLAYERS_INLINE static void load_units(int thread, unsigned char* tile, int rows,
                                             const int64_t* table, const ChannelSource& source,
                                             int64_t first_channel) {
    const int unit = thread % Traits::kChunkUnits;
    const int64_t channel = first_channel + unit * Traits::kPerUnit;
    const bool inside = channel < source.channels;
    const T* const from = static_cast<const T*>(source.data) + (inside ? channel : 0);
    unsigned char* const to = tile + unit * kUnitBytes;
    for (int row = thread / Traits::kChunkUnits; row < rows;
         row += Traits::kThreads / Traits::kChunkUnits) {
      const int64_t offset = table[row];
      copy_async(to + row * Traits::kPitch, inside && offset >= 0 ? from + offset : nullptr);
    }
  }

  SKETCHLAYERS_INLINE static T element(const int64_t* table, int row, const ChannelSource& source,
                                       int64_t channel) {
    const int64_t offset = table[row];
    if (channel >= source.channels || offset < 0) return T(0.0f);
    return static_cast<const T*>(source.data)[offset + channel * source.channel_stride];
  }

  // Neighbouring threads read neighbouring channels.
  SKETCHLAYERS_INLINE static void load_elements(int thread, unsigned char* tile, int rows,
                                                const int64_t* table, const ChannelSource& source,
                                                int64_t first_channel) {
    SKETCHLAYERS_UNROLL_BY(Traits::kLoadUnroll)
    for (int i = thread; i < rows * Traits::kChunk; i += Traits::kThreads) {
      const int row = i / Traits::kChunk;
      const int place = i % Traits::kChunk;
      reinterpret_cast<T*>(tile + row * Traits::kPitch)[place] =
          element(table, row, source, first_channel + place);
    }
  }

  // Neighbouring threads read neighbouring columns, and write words of channels. A thread keeps to
  // its rows; threads that rows would not need share the channels.
  SKETCHLAYERS_INLINE static void load_columns(int thread, unsigned char* tile, int rows,
                                               const int64_t* table, const ChannelSource& source,
                                               int64_t first_channel) {
    constexpr int kWord = 4 / static_cast<int>(sizeof(T));
    const int padded = (rows + kWarpSize - 1) / kWarpSize * kWarpSize;
    const int width = padded < Traits::kThreads ? padded : Traits::kThreads;
    const int parts = Traits::kThreads / width;
    const int part = thread / width;
    if (part >= parts) return;
    for (int row = thread % width; row < rows; row += width) {
      uint32_t* const to = reinterpret_cast<uint32_t*>(tile + row * Traits::kPitch);
      SKETCHLAYERS_UNROLL_BY(Traits::kLoadUnroll)
      for (int word = part; word < Traits::kChunk / kWord; word += parts) {
        T elements[kWord];
        SKETCHLAYERS_UNROLL
        for (int k = 0; k < kWord; ++k) {
          elements[k] = element(table, row, source, first_channel + word * kWord + k);
        }
        memcpy(to + word, static_cast<const void*>(elements), sizeof(uint32_t));
      }
    }
  }
};

}  // namespace sketchlayers::cuda
