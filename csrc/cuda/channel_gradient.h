// The gradients of both factors of channel mixing, for half types, in three kernels:
//   1. features of every pixel: of the gradient P = dY U1^T, of the input V = X U2^T
//   2. products over pixels, each block over some tiles of them:
//        grad_s1[r, c, tap] = sum_p P[p, r] X[p at tap, c]     ("the input is shifted")
//        grad_s2[o, r, tap] = sum_p V[p at tap, r] dY[p, o]    ("the features are shifted")
//   3. the sum of the blocks' parts, in a fixed order
// What is shifted lies in shared memory with its halo; a tap is only another address.
#pragma once

#include "cuda/channel_factors.h"

namespace sketchlayers::cuda {

template <typename T, int kRankPairs_>
struct ChannelGradientTraits : ChannelTraits<T, kRankPairs_> {
  using Base = ChannelTraits<T, kRankPairs_>;
  using Base::kChunk, Base::kPerUnit, Base::kRank, Base::kRankPairs, Base::kStep, Base::kWarps;
  static constexpr int kRankUnits = kRank / kPerUnit;
  static constexpr int kLoadUnroll = 1;                    // registers are for sums
  static constexpr int kBlocks = kRankPairs <= 2 ? 2 : 1;  // that registers shall hold
  static constexpr int kPixels = 128;
  static constexpr int kHalo = 256;
  static constexpr int kSteps = kPixels / kStep;
  // A warp takes 16 channels, and the sums of so many taps that registers suffice; each half of
  // the warps takes other taps.
  static constexpr int kHalfWarps = kWarps / 2;
  static constexpr int kWarpTaps = kRankPairs == 1 ? 5 : kRankPairs == 2 ? 3 : 2;
  static constexpr int kTaps = 2 * kWarpTaps;

  static_assert(sizeof(T) == 2, "only 2-byte elements can be transposed as they are loaded");
  static_assert(kHalfWarps * 16 == kChunk, "the warps of a half share a chunk of channels");
};

// ------------------------------------------------------------------------------ features

struct PixelFeaturesParams {
  Images images;
  int64_t height;
  int64_t width;
  int64_t pixels;  // of all images
  int rank;
  SignsView signs;
  void* features;  // (groups, pixels, padded rank)
  float scale;
};

template <typename Traits>
class PixelFeatures {
 public:
  using T = typename Traits::Type;

  struct Warp {
    Sums sums[Traits::kRankTiles];
  };

  static constexpr int kSharedBytes =
      Traits::kPixels * (static_cast<int>(sizeof(int64_t)) + 2 * Traits::kPitch);

  SKETCHLAYERS_INLINE PixelFeatures(const PixelFeaturesParams& params, unsigned char* shared,
                                    int64_t block, int group)
      : params_(params),
        group_(group),
        first_(block * Traits::kPixels),
        table_(reinterpret_cast<int64_t*>(shared)),
        tiles_(shared + Traits::kPixels * sizeof(int64_t)) {}

  template <typename Block>
  SKETCHLAYERS_INLINE void run(Block& block) {
    block.each_warp([&](int warp, Warp& state) { start(warp, state); });
    block.synchronize();
    const int chunks = (params_.images.channels + Traits::kChunk - 1) / Traits::kChunk;
    block.each_warp([&](int warp, Warp&) { load(warp, 0); });
    pipeline<Warp>(
        block, chunks, [&](int warp, int chunk) { load(warp, chunk); },
        [&](int warp, Warp& state, int chunk) { multiply(warp, state, chunk); });
    block.each_warp([&](int warp, Warp& state) { store(warp, state); });
  }

 private:
  SKETCHLAYERS_INLINE void start(int warp, Warp& state) {
    for_each_lane([&](int lane) {
      const int row = warp * kWarpSize + lane;
      if (row < Traits::kPixels) table_[row] = offset(first_ + row);
    });
    SKETCHLAYERS_UNROLL
    for (int j = 0; j < Traits::kRankTiles; ++j) clear(state.sums[j]);
  }

  SKETCHLAYERS_INLINE int64_t offset(int64_t pixel) const {
    if (pixel >= params_.pixels) return -1;
    return params_.images.offset(pixel / params_.width / params_.height,
                                 pixel / params_.width % params_.height, pixel % params_.width);
  }

  SKETCHLAYERS_INLINE unsigned char* tile(int chunk) const {
    return tiles_ + chunk % 2 * (Traits::kPixels * Traits::kPitch);
  }

  SKETCHLAYERS_INLINE void load(int warp, int chunk) {
    for_each_lane([&](int lane) {
      RowTile<Traits>(tile(chunk), Traits::kPixels, table_, params_.images, group_, chunk)
          .load(warp * kWarpSize + lane);
    });
    end_copies();
  }

  SKETCHLAYERS_INLINE void multiply(int warp, Warp& state, int chunk) {
    const int steps = (params_.images.channels + Traits::kStep - 1) / Traits::kStep;
    SKETCHLAYERS_UNROLL
    for (int s = 0; s < Traits::kChunkSteps; ++s) {
      const int step = chunk * Traits::kChunkSteps + s;
      if (step >= steps) continue;
      PerLane<const void*> rows;
      for_each_lane([&](int lane) {
        rows[lane] = tile(chunk) + (warp * 16 + left_row(lane)) * Traits::kPitch +
                     (2 * s + left_unit(lane)) * kUnitBytes;
      });
      LeftFragment left;
      load_left(left, rows);
      SKETCHLAYERS_UNROLL
      for (int j = 0; j < Traits::kRankTiles; ++j) {
        PerLane<uint32_t> words;
        for_each_lane([&](int lane) { words[lane] = word(8 * j + lane / 4, step); });
        RightFragment right;
        sign_fragment<T>(right, words, step * Traits::kStep % kSignsPerWord, false);
        cuda::multiply<T>(state.sums[j], left, right);
      }
    }
  }

  SKETCHLAYERS_INLINE uint32_t word(int rank, int step) const {
    if (rank >= params_.rank) return 0;
    const SignsView& signs = params_.signs;
    return static_cast<uint32_t>(signs.words[group_ * signs.group + rank * signs.rank +
                                             step * Traits::kStep / kSignsPerWord]);
  }

  // Columns beyond the rank are zeros.
  SKETCHLAYERS_INLINE void store(int warp, Warp& state) {
    SKETCHLAYERS_UNROLL
    for (int j = 0; j < Traits::kRankTiles; ++j) {
      for_each_lane([&](int lane) {
        SKETCHLAYERS_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int64_t pixel = first_ + warp * 16 + lane / 4 + 8 * half;
          const int column = 8 * j + 2 * (lane % 4);
          if (pixel >= params_.pixels) continue;
          const float low = column < params_.rank ? state.sums[j].value[2 * half][lane] : 0.0f;
          const float high =
              column + 1 < params_.rank ? state.sums[j].value[2 * half + 1][lane] : 0.0f;
          const int64_t to = (group_ * params_.pixels + pixel) * Traits::kRank + column;
          *reinterpret_cast<uint32_t*>(static_cast<T*>(params_.features) + to) =
              Element<T>::pack(low * params_.scale, high * params_.scale);
        }
      });
    }
  }

  const PixelFeaturesParams& params_;
  int group_;
  int64_t first_;
  int64_t* table_;
  unsigned char* tiles_;
};

// ------------------------------------------------------------------------------ products

// One of the two gradients.
struct FactorGradient {
  Images images;         // the input, or the output's gradient
  const void* features;  // of the other one's pixels
  float* partial;        // (split, group, tap, rank, channel)
};

struct ChannelGradientParams : TiledImages {
  FactorGradient first;   // of s1: the input is shifted
  FactorGradient second;  // of s2: the features of the input are shifted
  int groups;
  int rank;
  int splits;
};

template <typename Traits>
SKETCHLAYERS_HOST_DEVICE inline int64_t chunks(int64_t channels) {
  return ceil_divide(channels, Traits::kChunk);
}

template <typename Traits>
SKETCHLAYERS_HOST_DEVICE inline int64_t gradient_shared_bytes(int64_t halo) {
  const int64_t rows = ceil_divide(halo, 16) * 16;
  const int64_t tables = (rows + Traits::kPixels) * static_cast<int64_t>(sizeof(int64_t));
  const int64_t first = rows * Traits::kPitch + Traits::kPixels * Traits::kFeaturePitch;
  const int64_t second = rows * Traits::kFeaturePitch + Traits::kPixels * Traits::kPitch;
  const int64_t tiles = first > second ? first : second;
  const int64_t rows_of_pixels = Traits::kPixels * static_cast<int64_t>(sizeof(int));
  return 2 * (tables + tiles) + rows_of_pixels;
}

// The largest halo that fits, 0 for none.
template <typename Traits>
int64_t gradient_halo_for(int64_t bytes) {
  for (int64_t halo = Traits::kHalo; halo > 0; halo -= 16) {
    if (gradient_shared_bytes<Traits>(halo) <= bytes) return halo;
  }
  return 0;
}

// Blocks (split, chunk of channels of either gradient), with taps and groups as further axes.
template <typename Traits, bool kShiftsImages>
class ChannelGradient {
 public:
  using T = typename Traits::Type;

  struct Warp {
    Sums sums[Traits::kWarpTaps][Traits::kRankPairs][2];
  };

  SKETCHLAYERS_INLINE ChannelGradient(const ChannelGradientParams& params, unsigned char* shared,
                                      int split, int chunk, int tap_group, int group)
      : params_(params),
        gradient_(kShiftsImages ? params.first : params.second),
        geometry_(params),
        split_(split),
        chunk_(chunk),
        first_tap_(tap_group * Traits::kTaps),
        group_(group) {
    taps_ = static_cast<int>(params.vertical.kernel * params.horizontal.kernel);
    tables_ = reinterpret_cast<int64_t*>(shared);
    rows_ = reinterpret_cast<int*>(tables_ + 2 * (geometry_.halo_rows + Traits::kPixels));
    tiles_ = reinterpret_cast<unsigned char*>(rows_ + Traits::kPixels);
  }

  template <typename Block>
  SKETCHLAYERS_INLINE void run(Block& block) {
    const int64_t all = params_.tiles();
    const int count = split_ < all ? static_cast<int>((all - split_ - 1) / params_.splits) + 1 : 0;
    block.each_warp([&](int warp, Warp& state) {
      start(warp, state);
      if (count > 0) fill_tables(warp, 0);
    });
    block.synchronize();
    block.each_warp([&](int warp, Warp&) {
      if (count > 0) load(warp, 0);
      if (count > 1) fill_tables(warp, 1);
    });
    block.synchronize();
    pipeline<Warp>(
        block, count, [&](int warp, int i) { load(warp, i); },
        [&](int warp, Warp& state, int i) {
          multiply(warp, state, i);
          if (i + 2 < count) fill_tables(warp, i + 2);
        });
    block.each_warp([&](int warp, Warp& state) { store(warp, state); });
  }

 private:
  SKETCHLAYERS_INLINE void start(int warp, Warp& state) {
    SKETCHLAYERS_UNROLL
    for (int t = 0; t < Traits::kWarpTaps; ++t) {
      SKETCHLAYERS_UNROLL
      for (int j = 0; j < Traits::kRankPairs; ++j) {
        clear(state.sums[t][j][0]);
        clear(state.sums[t][j][1]);
      }
    }
    for_each_lane([&](int lane) {
      const int pixel = warp * kWarpSize + lane;
      if (pixel < Traits::kPixels) {
        rows_[pixel] = pixel < geometry_.pixels ? geometry_.halo_row(pixel) : 0;
      }
    });
  }

  // Of the kernel; beyond the last there is nothing to do.
  SKETCHLAYERS_INLINE int tap(int warp, int t) const {
    return first_tap_ + warp / Traits::kHalfWarps * Traits::kWarpTaps + t;
  }

  SKETCHLAYERS_INLINE int64_t* halo_table(int i) const {
    return tables_ + i % 2 * (geometry_.halo_rows + Traits::kPixels);
  }
  SKETCHLAYERS_INLINE int64_t* pixel_table(int i) const {
    return halo_table(i) + geometry_.halo_rows;
  }

  // Where the rows of the block's tile `i` start, of what is shifted and of what is not.
  SKETCHLAYERS_INLINE void fill_tables(int warp, int i) {
    const auto tile = geometry_.origin(split_ + static_cast<int64_t>(i) * params_.splits);
    for_each_lane([&](int lane) {
      SKETCHLAYERS_UNROLL_BY(1)
      for (int row = warp * kWarpSize + lane; row < geometry_.halo_rows; row += Traits::kThreads) {
        halo_table(i)[row] = geometry_.of_halo(tile, row, [&](int64_t n, int64_t y, int64_t x) {
          return offset(kShiftsImages, n, y, x, params_.vertical.input, params_.horizontal.input);
        });
      }
      SKETCHLAYERS_UNROLL_BY(1)
      for (int row = warp * kWarpSize + lane; row < Traits::kPixels; row += Traits::kThreads) {
        pixel_table(i)[row] = geometry_.of_pixel(tile, row, [&](int64_t n, int64_t y, int64_t x) {
          return offset(!kShiftsImages, n, y, x, params_.vertical.output,
                        params_.horizontal.output);
        });
      }
    });
  }

  SKETCHLAYERS_INLINE int64_t offset(bool of_images, int64_t image, int64_t y, int64_t x,
                                     int64_t height, int64_t width) const {
    if (of_images) return gradient_.images.offset(image, y, x);
    return (((group_ * params_.batch + image) * height + y) * width + x) * Traits::kRank;
  }

  SKETCHLAYERS_INLINE unsigned char* shifted_tile(int i) const {
    const int shifted =
        geometry_.halo_rows * (kShiftsImages ? Traits::kPitch : Traits::kFeaturePitch);
    const int centred = Traits::kPixels * (kShiftsImages ? Traits::kFeaturePitch : Traits::kPitch);
    return tiles_ + i % 2 * (shifted + centred);
  }
  SKETCHLAYERS_INLINE unsigned char* centred_tile(int i) const {
    return shifted_tile(i) +
           geometry_.halo_rows * (kShiftsImages ? Traits::kPitch : Traits::kFeaturePitch);
  }

  SKETCHLAYERS_INLINE void load(int warp, int i) {
    const int image_rows = kShiftsImages ? geometry_.halo_rows : Traits::kPixels;
    const int feature_rows = kShiftsImages ? Traits::kPixels : geometry_.halo_rows;
    for_each_lane([&](int lane) {
      const int thread = warp * kWarpSize + lane;
      RowTile<Traits>(kShiftsImages ? shifted_tile(i) : centred_tile(i), image_rows,
                      kShiftsImages ? halo_table(i) : pixel_table(i), gradient_.images, group_,
                      chunk_)
          .load(thread);
      load_features(thread, kShiftsImages ? centred_tile(i) : shifted_tile(i), feature_rows,
                    kShiftsImages ? pixel_table(i) : halo_table(i));
    });
    end_copies();
  }

  SKETCHLAYERS_INLINE void load_features(int thread, unsigned char* tile, int rows,
                                         const int64_t* table) {
    const T* const from = static_cast<const T*>(gradient_.features);
    SKETCHLAYERS_UNROLL_BY(1)
    for (int i = thread; i < rows * Traits::kRankUnits; i += Traits::kThreads) {
      const int row = i / Traits::kRankUnits;
      const int unit = i % Traits::kRankUnits;
      const int64_t offset = table[row];
      copy_async(tile + row * Traits::kFeaturePitch + unit * kUnitBytes,
                 offset >= 0 ? from + offset + unit * Traits::kPerUnit : nullptr);
    }
  }

  SKETCHLAYERS_INLINE int tap_shift(int tap) const {
    const int width = static_cast<int>(params_.horizontal.kernel);
    return geometry_.tap_shift(tap / width, tap % width);
  }

  SKETCHLAYERS_INLINE void multiply(int warp, Warp& state, int i) {
    SKETCHLAYERS_UNROLL_BY(1)  // registers are for sums
    for (int s = 0; s < Traits::kSteps; ++s) {
      if (s * Traits::kStep >= geometry_.pixels) continue;
      if constexpr (kShiftsImages) {
        multiply_shifted_images(warp, state, i, s);
      } else {
        multiply_shifted_features(warp, state, i, s);
      }
    }
  }

  SKETCHLAYERS_INLINE void multiply_shifted_images(int warp, Warp& state, int i, int s) {
    LeftFragment left[Traits::kRankPairs];
    for_each_rank_pair([&](int j) {
      load_feature_fragment(left[j], centred_tile(i), j, [&](int lane) {
        return s * Traits::kStep + transposed_left_row(lane);
      });
    });
    PerLane<int> row;
    for_each_lane(
        [&](int lane) { row[lane] = rows_[s * Traits::kStep + transposed_right_row(lane)]; });
    SKETCHLAYERS_UNROLL
    for (int t = 0; t < Traits::kWarpTaps; ++t) {
      if (tap(warp, t) >= taps_) continue;
      const int shift = tap_shift(tap(warp, t));
      RightFragment right[2];
      load_image_fragments(right, shifted_tile(i), warp,
                           [&](int lane) { return row[lane] + shift; });
      for_each_rank_pair([&](int j) {
        cuda::multiply<T>(state.sums[t][j][0], left[j], right[0]);
        cuda::multiply<T>(state.sums[t][j][1], left[j], right[1]);
      });
    }
  }

  SKETCHLAYERS_INLINE void multiply_shifted_features(int warp, Warp& state, int i, int s) {
    RightFragment right[2];
    load_image_fragments(right, centred_tile(i), warp,
                         [&](int lane) { return s * Traits::kStep + transposed_right_row(lane); });
    PerLane<int> row;
    for_each_lane(
        [&](int lane) { row[lane] = rows_[s * Traits::kStep + transposed_left_row(lane)]; });
    SKETCHLAYERS_UNROLL
    for (int t = 0; t < Traits::kWarpTaps; ++t) {
      if (tap(warp, t) >= taps_) continue;
      const int shift = tap_shift(tap(warp, t));
      for_each_rank_pair([&](int j) {
        LeftFragment left;
        load_feature_fragment(left, shifted_tile(i), j,
                              [&](int lane) { return row[lane] + shift; });
        cuda::multiply<T>(state.sums[t][j][0], left, right[0]);
        cuda::multiply<T>(state.sums[t][j][1], left, right[1]);
      });
    }
  }

  template <typename Body>
  SKETCHLAYERS_INLINE static void for_each_rank_pair(const Body& body) {
    SKETCHLAYERS_UNROLL
    for (int j = 0; j < Traits::kRankPairs; ++j) body(j);
  }

  // 16 rows of the rank, 16 pixels.
  template <typename Row>
  SKETCHLAYERS_INLINE static void load_feature_fragment(LeftFragment& left,
                                                        const unsigned char* tile, int pair,
                                                        const Row& row) {
    PerLane<const void*> rows;
    for_each_lane([&](int lane) {
      rows[lane] = tile + row(lane) * Traits::kFeaturePitch +
                   (2 * pair + transposed_left_unit(lane)) * kUnitBytes;
    });
    load_transposed(left.reg, rows);
  }

  // 16 pixels, the warp's 16 channels.
  template <typename Row>
  SKETCHLAYERS_INLINE static void load_image_fragments(RightFragment (&right)[2],
                                                       const unsigned char* tile, int warp,
                                                       const Row& row) {
    PerLane<const void*> rows;
    for_each_lane([&](int lane) {
      rows[lane] = tile + row(lane) * Traits::kPitch +
                   (2 * (warp % Traits::kHalfWarps) + transposed_right_unit(lane)) * kUnitBytes;
    });
    PerLane<uint32_t> reg[4];
    load_transposed(reg, rows);
    for_each_lane([&](int lane) {
      SKETCHLAYERS_UNROLL
      for (int k = 0; k < 4; ++k) right[k / 2].reg[k % 2][lane] = reg[k][lane];
    });
  }

  SKETCHLAYERS_INLINE void store(int warp, Warp& state) {
    SKETCHLAYERS_UNROLL
    for (int t = 0; t < Traits::kWarpTaps; ++t) {
      if (tap(warp, t) >= taps_) continue;
      SKETCHLAYERS_UNROLL
      for (int j = 0; j < 2 * Traits::kRankPairs; ++j) {
        for_each_lane([&](int lane) {
          SKETCHLAYERS_UNROLL
          for (int k = 0; k < 4; ++k) {
            const int row = j / 2 * 16 + lane / 4 + k / 2 * 8;
            const int channel = chunk_ * Traits::kChunk + warp % Traits::kHalfWarps * 16 +
                                j % 2 * 8 + lane % 4 * 2 + k % 2;
            store_sum(tap(warp, t), row, channel, state.sums[t][j / 2][j % 2].value[k][lane]);
          }
        });
      }
    }
  }

  SKETCHLAYERS_INLINE void store_sum(int tap, int row, int channel, float sum) {
    if (row >= params_.rank || channel >= gradient_.images.channels) return;
    const int64_t part = (split_ * params_.groups + group_) * taps_ + tap;
    gradient_.partial[(part * params_.rank + row) * gradient_.images.channels + channel] = sum;
  }

  const ChannelGradientParams& params_;
  const FactorGradient& gradient_;
  const TileGeometry geometry_;
  int64_t split_;
  int chunk_, first_tap_, group_;
  int taps_;  // of the kernel
  int64_t* tables_;
  int* rows_;  // of the halo, for each pixel and tap 0
  unsigned char* tiles_;
};

// ------------------------------------------------------------------------------ sums

struct GradientSumParams {
  const float* partial;  // (split, group, tap, rank, channel)
  void* gradient;
  FactorView view;   // its strides; `data` is not used
  int64_t elements;  // of a split
  int splits;
  int rank;
  int channels;
  int kernel_h;
  int kernel_w;
  float scale;
};

// Element `i` of (group, tap, rank, channel).
template <typename T>
SKETCHLAYERS_INLINE void add_splits(const GradientSumParams& params, int i) {
  float sum = 0.0f;
  for (int split = 0; split < params.splits; ++split) {
    sum += params.partial[split * params.elements + i];
  }
  const int64_t channel = i % params.channels;
  const int64_t rank = i / params.channels % params.rank;
  const int64_t tap = i / params.channels / params.rank % (params.kernel_h * params.kernel_w);
  const int64_t group = i / params.channels / params.rank / (params.kernel_h * params.kernel_w);
  const FactorView& view = params.view;
  static_cast<T*>(
      params.gradient)[group * view.group + rank * view.rank + channel * view.channel +
                       tap / params.kernel_w * view.row + tap % params.kernel_w * view.column] =
      static_cast<T>(sum * params.scale);
}

}  // namespace sketchlayers::cuda
