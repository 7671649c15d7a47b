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

  // Neighbouring threads read neighbouring elements, be they columns or channels.
  SKETCHLAYERS_INLINE static void load_elements(int thread, unsigned char* tile, int rows,
                                                const int64_t* table, const ChannelSource& source,
                                                int64_t first_channel) {
    const T* const from = static_cast<const T*>(source.data);
    SKETCHLAYERS_UNROLL_BY(Traits::kLoadUnroll)
    for (int i = thread; i < rows * Traits::kChunk; i += Traits::kThreads) {
      const int row = source.channels_first ? i % rows : i / Traits::kChunk;
      const int place = source.channels_first ? i / rows : i % Traits::kChunk;
      const int64_t channel = first_channel + place;
      const int64_t offset = table[row];
      T value = T(0.0f);
      if (channel < source.channels && offset >= 0) {
        value = from[offset + channel * source.channel_stride];
      }
      reinterpret_cast<T*>(tile + row * Traits::kPitch)[place] = value;
    }
  }
};

}  // namespace sketchlayers::cuda
