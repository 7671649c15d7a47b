// The factored convolution with channel mixing as one pass over tiles of output pixels:
//   inner    = sum over taps of shifted rows of the input tile times S1[tap]   (pixels x rank)
//   features = rows of the input tile times signs                              (halo x rank)
//   output   = inner times signs + sum over taps of shifted rows of features times S2[tap]
// The input tile with its halo lies in shared memory, `inner` never leaves the registers, and
// `features` take the input tile's place. Shifted rows are only other addresses. The gradient of
// the input is, for stride 1, the same computation with the factors' roles exchanged.
//
// Everything here compiles for host and device. A block runs phase by phase, so that tests can run
// it without a GPU.
#pragma once

#include "cuda/fragments.h"
#include "cuda/pixel_tiles.h"
#include "cuda/row_tile.h"
#include "signs.h"

namespace sketchlayers::cuda {

// What all kernels of channel mixing share.
template <typename T, int kRankPairs_>
struct ChannelTraits {
  using Type = T;
  static constexpr int kWarps = 8;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kPerUnit = Element<T>::kPerUnit;
  static constexpr int kStep = Element<T>::kStep;
  static constexpr int kRankPairs = kRankPairs_;  // pairs of 8 columns, the rank padded
  static constexpr int kRankTiles = 2 * kRankPairs;
  static constexpr int kRank = 16 * kRankPairs;
  // Input channels go through shared memory in chunks of 128 bytes.
  static constexpr int kChunkUnits = 8;
  static constexpr int kChunk = kChunkUnits * kPerUnit;
  static constexpr int kChunkSteps = kChunk / kStep;
  // One unit more than the row has, so that 8 neighbouring rows lie in different banks.
  static constexpr int kPitch = (kChunkUnits + 1) * kUnitBytes;
  static constexpr int kFeaturePitch = kRank * static_cast<int>(sizeof(T)) + kUnitBytes;
};

// Pixels in a block are weighed against blocks on a multiprocessor: with more pixels a factor's
// fragment serves more products, with more blocks there is more to do while memory is waited for.
template <typename T, int kRankPairs_, int kPixelTiles_, int kHaloTiles_, int kBlocks_ = 1>
struct ChannelConvTraits : ChannelTraits<T, kRankPairs_> {
  using Base = ChannelTraits<T, kRankPairs_>;
  using Base::kChunk, Base::kFeaturePitch, Base::kPerUnit, Base::kPitch, Base::kRank, Base::kStep,
      Base::kWarps;
  static constexpr int kBlocks = kBlocks_;  // that a multiprocessor's registers shall hold
  static constexpr int kRankSteps = kRank / kStep;
  static constexpr int kRankWords = (kRank + kSignsPerWord - 1) / kSignsPerWord;
  static constexpr int kPixelTiles = kPixelTiles_;  // of 16 output pixels, for each warp
  static constexpr int kHaloTiles = kHaloTiles_;    // of 16 input pixels, for each warp
  static constexpr int kPixels = kWarps * kPixelTiles * 16;
  static constexpr int kHalo = kWarps * kHaloTiles * 16;
  static constexpr int kChunkWords = kChunk / kSignsPerWord;
  static constexpr int kStepsPerWord = kSignsPerWord / kStep;
  static constexpr int kLoadUnroll = 4;
  // Outputs are computed 64 at a time.
  static constexpr int kOutputTiles = 8;
  static constexpr int kOutputPairs = kOutputTiles / 2;
  // Tiles whose sums make up one unit of a lane's neighbouring outputs (see output_column).
  static constexpr int kTilesPerUnit = kPerUnit / 2;

  static_assert(kStep * static_cast<int>(sizeof(T)) == 2 * kUnitBytes, "a step is two units");
  static_assert(kChunk % kSignsPerWord == 0 && kSignsPerWord % kStep == 0, "words of whole steps");
  static_assert(kFeaturePitch <= 2 * kPitch, "features must fit in the place of the input tiles");
  static_assert(kFeaturePitch / 4 % 32 % 4 == 0 && kFeaturePitch / kUnitBytes % 2 == 1,
                "8 neighbouring rows must lie in different banks");
};

// What is compiled: ranks up to 16, 32, 48 and 64. None of them spills (docs/cuda.md).
template <typename T, int kRankPairs>
struct ChannelConvChoice {
  static constexpr bool kHalf = sizeof(T) == 2;
  static constexpr bool kLarge = kHalf && kRankPairs == 1;
  static constexpr int kBlocks = (kHalf ? kRankPairs <= 2 : kRankPairs == 1) ? 2 : 1;
  using Traits = ChannelConvTraits<T, kRankPairs, kLarge ? 2 : 1, kLarge ? 4 : 2, kBlocks>;
};
constexpr int64_t kLargestChannelRank = 64;

// Sizes of what is packed, for one group.
struct ChannelFactorsSizes {
  int64_t first_units;
  int64_t first_words;
  int64_t second_units;
  int64_t second_words;

  SKETCHLAYERS_HOST_DEVICE int64_t items() const {
    return first_units + first_words + second_units + second_words;
  }
  // All groups, each part starting at a multiple of 16 bytes (words come in multiples of 8).
  int64_t bytes(int64_t groups) const {
    return groups * ((first_units + second_units) * kUnitBytes + (first_words + second_words) * 4);
  }
};

// The factors as `ChannelFactors` lays them out, group after group.
struct PackedFactors {
  Unit* first;
  Unit* second;
  uint32_t* first_signs;
  uint32_t* second_signs;
  ChannelFactorsSizes sizes;
};

struct ChannelConvParams : TiledImages {
  Images input;
  void* output;
  const void* bias;  // may be null
  PackedFactors factors;
  int64_t output_strides[4];  // batch, channel, row, column
  int outputs;                // of one group
  int rank;
  float inner_scale;  // of what is rounded between the two products
  float outer_scale;
  bool output_units;  // 16 bytes of outputs can be written at once
};

// The output that column `column` of tile `tile` of the second product stands for. The order makes
// the columns that one lane holds, two in each tile, neighbours over a unit's worth of tiles.
template <typename Traits>
SKETCHLAYERS_HOST_DEVICE inline int output_column(int tile, int column) {
  constexpr int kTiles = Traits::kTilesPerUnit;
  return tile / kTiles * 8 * kTiles + column / 2 * 2 * kTiles + tile % kTiles * 2 + column % 2;
}

template <typename Traits>
SKETCHLAYERS_HOST_DEVICE inline int64_t shared_bytes(int64_t halo) {
  const int64_t rows = ceil_divide(halo, 16) * 16;
  return (rows + Traits::kPixels) * static_cast<int64_t>(sizeof(int64_t)) +
         2 * rows * Traits::kPitch;
}

// The largest halo that fits.
template <typename Traits>
int64_t halo_for(int64_t bytes) {
  const int64_t row = shared_bytes<Traits>(16) - shared_bytes<Traits>(0);
  return bytes < shared_bytes<Traits>(0) ? 0 : (bytes - shared_bytes<Traits>(0)) / row * 16;
}

template <typename Traits>
class ChannelConv {
 public:
  using T = typename Traits::Type;

  // What a warp remembers from phase to phase.
  struct Warp {
    Sums first[Traits::kPixelTiles][Traits::kRankTiles];
    Sums features[Traits::kHaloTiles][Traits::kRankTiles];
    LeftFragment inner[Traits::kPixelTiles][Traits::kRankSteps];
    PerLane<int> row[Traits::kPixelTiles];  // of the halo, for the lane's pixel and tap 0
  };

  SKETCHLAYERS_INLINE ChannelConv(const ChannelConvParams& params, unsigned char* shared,
                                  int64_t block, int group)
      : params_(params), geometry_(params), tile_(geometry_.origin(block)), group_(group) {
    table_ = reinterpret_cast<int64_t*>(shared);
    outputs_ = table_ + geometry_.halo_rows;
    tiles_ = reinterpret_cast<unsigned char*>(outputs_ + Traits::kPixels);
  }

  // The whole of a block's work.
  template <typename Block>
  SKETCHLAYERS_INLINE void run(Block& block) {
    block.each_warp([&](int warp, Warp& state) { start(warp, state); });
    block.synchronize();
    const int chunks = (params_.input.channels + Traits::kChunk - 1) / Traits::kChunk;
    block.each_warp([&](int warp, Warp&) { load(warp, 0); });
    pipeline<Warp>(
        block, chunks, [&](int warp, int chunk) { load(warp, chunk); },
        [&](int warp, Warp& state, int chunk) { multiply_chunk(warp, state, chunk); });
    block.each_warp([&](int warp, Warp& state) { store_features(warp, state); });
    block.synchronize();
    block.each_warp([&](int warp, Warp& state) { multiply_outputs(warp, state); });
  }

 private:
  // Which element each row of the halo starts with (below 0: a zero outside of the image), where
  // each pixel's outputs go, and which row each lane's pixels start from.
  SKETCHLAYERS_INLINE void start(int warp, Warp& state) {
    for_each_lane([&](int lane) {
      for (int row = warp * kWarpSize + lane; row < geometry_.halo_rows; row += Traits::kThreads) {
        table_[row] = geometry_.of_halo(tile_, row, [&](int64_t image, int64_t y, int64_t x) {
          return params_.input.offset(image, y, x);
        });
      }
      const int64_t* const strides = params_.output_strides;
      for (int i = warp * kWarpSize + lane; i < Traits::kPixels; i += Traits::kThreads) {
        outputs_[i] = geometry_.of_pixel(tile_, i, [&](int64_t image, int64_t y, int64_t x) {
          return image * strides[0] + y * strides[2] + x * strides[3];
        });
      }
    });
    SKETCHLAYERS_UNROLL
    for (int i = 0; i < Traits::kPixelTiles; ++i) {
      for_each_lane([&](int lane) {
        const int pixel = tile_of(warp, i) * 16 + left_row(lane);
        state.row[i][lane] = pixel < geometry_.pixels ? geometry_.halo_row(pixel) : 0;
      });
      SKETCHLAYERS_UNROLL
      for (int j = 0; j < Traits::kRankTiles; ++j) clear(state.first[i][j]);
    }
    SKETCHLAYERS_UNROLL
    for (int i = 0; i < Traits::kHaloTiles; ++i) {
      SKETCHLAYERS_UNROLL
      for (int j = 0; j < Traits::kRankTiles; ++j) clear(state.features[i][j]);
    }
  }

  // Of 16 pixels, or of 16 rows of the halo.
  SKETCHLAYERS_INLINE static int tile_of(int warp, int i) { return warp + i * Traits::kWarps; }
  SKETCHLAYERS_INLINE bool has_pixels(int warp, int i) const {
    return tile_of(warp, i) * 16 < geometry_.pixels;
  }
  SKETCHLAYERS_INLINE bool has_halo(int warp, int i) const {
    return tile_of(warp, i) * 16 < geometry_.halo_rows;
  }

  SKETCHLAYERS_INLINE unsigned char* chunk_tile(int chunk) const {
    return tiles_ + chunk % 2 * (geometry_.halo_rows * Traits::kPitch);
  }

  // Channels of a chunk for the whole halo, to shared memory.
  SKETCHLAYERS_INLINE void load(int warp, int chunk) {
    for_each_lane([&](int lane) {
      RowTile<Traits>(chunk_tile(chunk), geometry_.halo_rows, table_, params_.input, group_, chunk)
          .load(warp * kWarpSize + lane);
    });
    end_copies();
  }

  SKETCHLAYERS_INLINE static void load_prepared(LeftFragment& left,
                                                const PerLane<const void*>& rows) {
    load_left(left, rows);
    SKETCHLAYERS_UNROLL
    for (int i = 0; i < 4; ++i) {
      for_each_lane([&](int lane) { left.reg[i][lane] = Element<T>::prepare(left.reg[i][lane]); });
    }
  }

  // A pair of neighbouring right fragments, of which each lane's part lies together.
  SKETCHLAYERS_INLINE static void load_right(RightFragment (&pair)[2], const Unit* units) {
    for_each_lane([&](int lane) {
#if defined(__CUDA_ARCH__)
      const Unit unit = bit_copy<Unit>(__ldg(reinterpret_cast<const uint4*>(units + lane)));
#else
      const Unit unit = units[lane];
#endif
      SKETCHLAYERS_UNROLL
      for (int i = 0; i < 4; ++i) pair[i / 2].reg[i % 2][lane] = unit.word[i];
    });
  }

  SKETCHLAYERS_INLINE void multiply_chunk(int warp, Warp& state, int chunk) {
    const int steps = (params_.input.channels + Traits::kStep - 1) / Traits::kStep;
    const int left = steps - chunk * Traits::kChunkSteps;
    if (left >= Traits::kChunkSteps) {
      multiply_taps<true>(warp, state, chunk, Traits::kChunkSteps);
      multiply_signs(warp, state, chunk, Traits::kChunkSteps);
    } else {
      multiply_taps<false>(warp, state, chunk, left);
      multiply_signs(warp, state, chunk, left);
    }
  }

  // first += shifted rows times S1[tap]
  template <bool kWhole>
  SKETCHLAYERS_INLINE void multiply_taps(int warp, Warp& state, int chunk, int steps_here) {
    const int steps = (params_.input.channels + Traits::kStep - 1) / Traits::kStep;
    const unsigned char* const tile = chunk_tile(chunk);
    const Unit* units =
        params_.factors.first + group_ * params_.factors.sizes.first_units +
        static_cast<int64_t>(chunk) * Traits::kChunkSteps * Traits::kRankPairs * kWarpSize;
    for (int y = 0; y < params_.vertical.kernel; ++y) {
      for (int x = 0; x < params_.horizontal.kernel; ++x) {
        const int shift = geometry_.tap_shift(y, x);
        if constexpr (kWhole) {
          SKETCHLAYERS_UNROLL
          for (int s = 0; s < Traits::kChunkSteps; ++s) {
            multiply_step(warp, state, tile, shift, s, units);
          }
        } else {
          for (int s = 0; s < steps_here; ++s) multiply_step(warp, state, tile, shift, s, units);
        }
        units += static_cast<int64_t>(steps) * Traits::kRankPairs * kWarpSize;
      }
    }
  }

  SKETCHLAYERS_INLINE void multiply_step(int warp, Warp& state, const unsigned char* tile,
                                         int shift, int step, const Unit* units) {
    RightFragment right[Traits::kRankPairs][2];
    SKETCHLAYERS_UNROLL
    for (int j = 0; j < Traits::kRankPairs; ++j) {
      load_right(right[j], units + (step * Traits::kRankPairs + j) * kWarpSize);
    }
    SKETCHLAYERS_UNROLL
    for (int i = 0; i < Traits::kPixelTiles; ++i) {
      if (!has_pixels(warp, i)) continue;
      PerLane<const void*> rows;
      for_each_lane([&](int lane) {
        rows[lane] = tile + (state.row[i][lane] + shift) * Traits::kPitch +
                     (2 * step + left_unit(lane)) * kUnitBytes;
      });
      LeftFragment left;
      load_prepared(left, rows);
      SKETCHLAYERS_UNROLL
      for (int j = 0; j < Traits::kRankTiles; ++j) {
        multiply<T>(state.first[i][j], left, right[j / 2][j % 2]);
      }
    }
  }

  // features += rows of the halo times signs
  SKETCHLAYERS_INLINE void multiply_signs(int warp, Warp& state, int chunk, int steps_here) {
    const unsigned char* const tile = chunk_tile(chunk);
    const uint32_t* signs = params_.factors.first_signs +
                            group_ * params_.factors.sizes.first_words +
                            static_cast<int64_t>(chunk) * Traits::kChunkWords * Traits::kRank;
    SKETCHLAYERS_UNROLL
    for (int w = 0; w < Traits::kChunkWords; ++w) {
      if (w * Traits::kStepsPerWord >= steps_here) continue;
      PerLane<uint32_t> words[Traits::kRankTiles];
      SKETCHLAYERS_UNROLL
      for (int j = 0; j < Traits::kRankTiles; ++j) {
        for_each_lane(
            [&](int lane) { words[j][lane] = signs[w * Traits::kRank + 8 * j + lane / 4]; });
      }
      SKETCHLAYERS_UNROLL
      for (int s = 0; s < Traits::kStepsPerWord; ++s) {
        const int step = w * Traits::kStepsPerWord + s;
        if (step < steps_here) multiply_sign_step(warp, state, tile, step, words);
      }
    }
  }

  SKETCHLAYERS_INLINE void multiply_sign_step(int warp, Warp& state, const unsigned char* tile,
                                              int step, const PerLane<uint32_t>* words) {
    RightFragment right[Traits::kRankTiles];
    SKETCHLAYERS_UNROLL
    for (int j = 0; j < Traits::kRankTiles; ++j) {
      sign_fragment<T>(right[j], words[j], step * Traits::kStep % kSignsPerWord, false);
    }
    SKETCHLAYERS_UNROLL
    for (int i = 0; i < Traits::kHaloTiles; ++i) {
      if (!has_halo(warp, i)) continue;
      PerLane<const void*> rows;
      for_each_lane([&](int lane) {
        rows[lane] = tile + (tile_of(warp, i) * 16 + left_row(lane)) * Traits::kPitch +
                     (2 * step + left_unit(lane)) * kUnitBytes;
      });
      LeftFragment left;
      load_prepared(left, rows);
      SKETCHLAYERS_UNROLL
      for (int j = 0; j < Traits::kRankTiles; ++j) {
        multiply<T>(state.features[i][j], left, right[j]);
      }
    }
  }

  // Rounds both inner results: `first` to left fragments, `features` to shared memory. Columns
  // beyond the rank are zeros.
  SKETCHLAYERS_INLINE void store_features(int warp, Warp& state) {
    SKETCHLAYERS_UNROLL
    for (int i = 0; i < Traits::kPixelTiles; ++i) {
      SKETCHLAYERS_UNROLL
      for (int s = 0; s < Traits::kRankSteps; ++s) {
        pass_on<T>(state.inner[i][s], &state.first[i][s * Element<T>::kTilesPerStep],
                   params_.inner_scale);
      }
    }
    SKETCHLAYERS_UNROLL
    for (int i = 0; i < Traits::kHaloTiles; ++i) {
      if (!has_halo(warp, i)) continue;
      SKETCHLAYERS_UNROLL
      for (int j = 0; j < Traits::kRankTiles; ++j) {
        for_each_lane([&](int lane) {
          SKETCHLAYERS_UNROLL
          for (int half = 0; half < 2; ++half) {
            const int row = tile_of(warp, i) * 16 + lane / 4 + 8 * half;
            const int column = 8 * j + 2 * (lane % 4);
            const Sums& sums = state.features[i][j];
            store_pair(row, column, sums.value[2 * half][lane], sums.value[2 * half + 1][lane]);
          }
        });
      }
    }
  }

  SKETCHLAYERS_INLINE void store_pair(int row, int column, float low, float high) {
    low = column < params_.rank ? low * params_.inner_scale : 0.0f;
    high = column + 1 < params_.rank ? high * params_.inner_scale : 0.0f;
    unsigned char* const to =
        tiles_ + row * Traits::kFeaturePitch + column * static_cast<int>(sizeof(T));
    if constexpr (sizeof(T) == 2) {
      *reinterpret_cast<uint32_t*>(to) = Element<T>::pack(low, high);
    } else {
      reinterpret_cast<uint32_t*>(to)[0] = Element<T>::prepare(bit_copy<uint32_t>(low));
      reinterpret_cast<uint32_t*>(to)[1] = Element<T>::prepare(bit_copy<uint32_t>(high));
    }
  }

  SKETCHLAYERS_INLINE void multiply_outputs(int warp, Warp& state) {
    const int pairs = static_cast<int>(ceil_divide(params_.outputs, 16));
    for (int pair = 0; pair < pairs; pair += Traits::kOutputPairs) {
      multiply_output_pairs(warp, state, pair, pairs - pair);
    }
  }

  // 64 outputs for all pixels of the warp.
  SKETCHLAYERS_INLINE void multiply_output_pairs(int warp, Warp& state, int pair, int pairs_left) {
    synchronize_warp();
    Sums sums[Traits::kPixelTiles][Traits::kOutputTiles];
    SKETCHLAYERS_UNROLL
    for (int i = 0; i < Traits::kPixelTiles; ++i) {
      SKETCHLAYERS_UNROLL
      for (int j = 0; j < Traits::kOutputTiles; ++j) clear(sums[i][j]);
    }
    // A unit of neighbouring outputs spans several tiles, all of which are needed.
    constexpr int kPairsPerUnit = (Traits::kTilesPerUnit + 1) / 2;
    const int live = (pairs_left + kPairsPerUnit - 1) / kPairsPerUnit * kPairsPerUnit;
    add_inner(warp, state, sums, pair, live);
    add_features(warp, state, sums, pair, live);
    SKETCHLAYERS_UNROLL
    for (int i = 0; i < Traits::kPixelTiles; ++i) {
      store_outputs(warp, sums[i], i, pair * 16);
    }
  }

  // sums += inner times signs
  SKETCHLAYERS_INLINE void add_inner(int warp, Warp& state,
                                     Sums (&sums)[Traits::kPixelTiles][Traits::kOutputTiles],
                                     int pair, int live) {
    const uint32_t* const signs = params_.factors.second_signs +
                                  group_ * params_.factors.sizes.second_words +
                                  static_cast<int64_t>(pair) * 16 * Traits::kRankWords;
    SKETCHLAYERS_UNROLL
    for (int j = 0; j < Traits::kOutputTiles; ++j) {
      if (j / 2 >= live) continue;
      SKETCHLAYERS_UNROLL
      for (int w = 0; w < Traits::kRankWords; ++w) {
        PerLane<uint32_t> words;
        for_each_lane(
            [&](int lane) { words[lane] = signs[(j * Traits::kRankWords + w) * 8 + lane / 4]; });
        SKETCHLAYERS_UNROLL
        for (int k = 0; k < Traits::kStepsPerWord; ++k) {
          const int step = w * Traits::kStepsPerWord + k;
          if (step >= Traits::kRankSteps) continue;
          RightFragment right;
          sign_fragment<T>(right, words, k * Traits::kStep, true);
          SKETCHLAYERS_UNROLL
          for (int i = 0; i < Traits::kPixelTiles; ++i) {
            if (!has_pixels(warp, i)) continue;
            multiply<T>(sums[i][j], state.inner[i][step < Traits::kRankSteps ? step : 0], right);
          }
        }
      }
    }
  }

  // sums += shifted rows of features times S2[tap]
  SKETCHLAYERS_INLINE void add_features(int warp, Warp& state,
                                        Sums (&sums)[Traits::kPixelTiles][Traits::kOutputTiles],
                                        int pair, int live) {
    const int pairs = padded_pairs(params_.outputs);
    const Unit* units = params_.factors.second + group_ * params_.factors.sizes.second_units +
                        static_cast<int64_t>(pair) * kWarpSize;
    for (int y = 0; y < params_.vertical.kernel; ++y) {
      for (int x = 0; x < params_.horizontal.kernel; ++x) {
        const int shift = geometry_.tap_shift(y, x);
        SKETCHLAYERS_UNROLL
        for (int step = 0; step < Traits::kRankSteps; ++step) {
          add_feature_step(warp, state, sums, shift, step, units, live);
          units += static_cast<int64_t>(pairs) * kWarpSize;
        }
      }
    }
  }

  SKETCHLAYERS_INLINE void add_feature_step(int warp, Warp& state,
                                            Sums (&sums)[Traits::kPixelTiles][Traits::kOutputTiles],
                                            int shift, int step, const Unit* units, int live) {
    LeftFragment left[Traits::kPixelTiles];
    SKETCHLAYERS_UNROLL
    for (int i = 0; i < Traits::kPixelTiles; ++i) {
      PerLane<const void*> rows;
      for_each_lane([&](int lane) {
        rows[lane] = tiles_ + (state.row[i][lane] + shift) * Traits::kFeaturePitch +
                     (2 * step + left_unit(lane)) * kUnitBytes;
      });
      load_left(left[i], rows);
    }
    SKETCHLAYERS_UNROLL
    for (int j = 0; j < Traits::kOutputPairs; ++j) {
      if (j >= live) continue;
      RightFragment right[2];
      load_right(right, units + j * kWarpSize);
      SKETCHLAYERS_UNROLL
      for (int i = 0; i < Traits::kPixelTiles; ++i) {
        if (!has_pixels(warp, i)) continue;
        multiply<T>(sums[i][2 * j], left[i], right[0]);
        multiply<T>(sums[i][2 * j + 1], left[i], right[1]);
      }
    }
  }

  SKETCHLAYERS_INLINE void store_outputs(int warp, const Sums (&sums)[Traits::kOutputTiles], int i,
                                         int first_output) {
    constexpr int kTiles = Traits::kTilesPerUnit;
    for_each_lane([&](int lane) {
      SKETCHLAYERS_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int pixel = tile_of(warp, i) * 16 + lane / 4 + 8 * half;
        const int64_t offset = outputs_[pixel];
        if (offset < 0) continue;
        SKETCHLAYERS_UNROLL
        for (int unit = 0; unit < Traits::kOutputTiles / kTiles; ++unit) {
          float values[Traits::kPerUnit];
          SKETCHLAYERS_UNROLL
          for (int k = 0; k < Traits::kPerUnit; ++k) {
            values[k] = sums[unit * kTiles + k / 2].value[2 * half + k % 2][lane];
          }
          const int output = first_output + output_column<Traits>(unit * kTiles, 2 * (lane % 4));
          store_unit(offset, output, values);
        }
      }
    });
  }

  SKETCHLAYERS_INLINE void store_unit(int64_t offset, int output,
                                      const float (&values)[Traits::kPerUnit]) {
    const int64_t group_output = static_cast<int64_t>(group_) * params_.outputs + output;
    const T* const bias =
        params_.bias == nullptr ? nullptr : static_cast<const T*>(params_.bias) + group_output;
    T* const to =
        static_cast<T*>(params_.output) + offset + group_output * params_.output_strides[1];
    float finished[Traits::kPerUnit];
    SKETCHLAYERS_UNROLL
    for (int k = 0; k < Traits::kPerUnit; ++k) {
      const bool inside = output + k < params_.outputs;
      finished[k] = values[k] * params_.outer_scale +
                    (bias != nullptr && inside ? static_cast<float>(bias[k]) : 0.0f);
    }
    if (params_.output_units) {
      if (output < params_.outputs) *reinterpret_cast<Unit*>(to) = rounded(finished);
      return;
    }
    SKETCHLAYERS_UNROLL
    for (int k = 0; k < Traits::kPerUnit; ++k) {
      if (output + k < params_.outputs) {
        to[k * params_.output_strides[1]] = static_cast<T>(finished[k]);
      }
    }
  }

  SKETCHLAYERS_INLINE static Unit rounded(const float (&values)[Traits::kPerUnit]) {
    Unit unit;
    SKETCHLAYERS_UNROLL
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(T) == 2) {
        unit.word[i] = Element<T>::pack(values[2 * i], values[2 * i + 1]);
      } else {
        unit.word[i] = bit_copy<uint32_t>(values[i]);
      }
    }
    return unit;
  }

 public:
  // Pairs of 8 outputs, whole chunks.
  SKETCHLAYERS_HOST_DEVICE static int padded_pairs(int64_t outputs) {
    return static_cast<int>(ceil_divide(outputs, 16 * Traits::kOutputPairs)) * Traits::kOutputPairs;
  }

 private:
  const ChannelConvParams& params_;
  const TileGeometry geometry_;
  const TileGeometry::Origin tile_;
  int group_;
  int64_t* table_;    // where each row of the halo starts in the input
  int64_t* outputs_;  // where each pixel starts in the output
  unsigned char* tiles_;
};

}  // namespace sketchlayers::cuda
