// The factors of channel mixing in the order in which `ChannelConv` reads them: each lane's part of
// a fragment lies together, sizes are padded with zeros, and signs lie in words along the rank
// where the second product needs them so.
#pragma once

#include "cuda/channel_conv.h"

namespace sketchlayers::cuda {

// A factor (groups, rank, channels, kernel height, kernel width) with any strides; an axis that is
// flipped has a negative one, and `data` is the element of index 0.
struct FactorView {
  const void* data;
  int64_t group;
  int64_t rank;
  int64_t channel;
  int64_t row;
  int64_t column;
};

// Packed signs (groups, rank, words along the channels).
struct SignsView {
  const int32_t* words;
  int64_t group;
  int64_t rank;
};

struct ChannelFactorsParams {
  FactorView first;   // channels: those of the input
  FactorView second;  // channels: those of the output
  SignsView first_signs;
  SignsView second_signs;
  int kernel_h;
  int kernel_w;
  int rank;
  int channels;
  int outputs;
  int groups;
  PackedFactors packed;
};

template <typename Traits>
class ChannelFactors {
 public:
  using T = typename Traits::Type;

  SKETCHLAYERS_HOST_DEVICE static ChannelFactorsSizes sizes(int64_t taps, int64_t channels,
                                                            int64_t outputs) {
    const int64_t pairs = ChannelConv<Traits>::padded_pairs(outputs);
    ChannelFactorsSizes sizes;
    sizes.first_units =
        taps * ceil_divide(channels, Traits::kStep) * Traits::kRankPairs * kWarpSize;
    sizes.first_words = ceil_divide(channels, kSignsPerWord) * Traits::kRank;
    sizes.second_units = taps * Traits::kRankSteps * pairs * kWarpSize;
    sizes.second_words = pairs * 16 * Traits::kRankWords;
    return sizes;
  }

  // Packs unit or word `item` of a group.
  SKETCHLAYERS_INLINE static void pack(const ChannelFactorsParams& params, int64_t item,
                                       int group) {
    const PackedFactors& packed = params.packed;
    const ChannelFactorsSizes& sizes = packed.sizes;
    if (item < sizes.first_units) {
      packed.first[group * sizes.first_units + item] = first_unit(params, item, group);
      return;
    }
    item -= sizes.first_units;
    if (item < sizes.second_units) {
      packed.second[group * sizes.second_units + item] = second_unit(params, item, group);
      return;
    }
    item -= sizes.second_units;
    if (item < sizes.first_words) {
      packed.first_signs[group * sizes.first_words + item] = first_word(params, item, group);
      return;
    }
    item -= sizes.first_words;
    packed.second_signs[group * sizes.second_words + item] = second_word(params, item, group);
  }

 private:
  // Zeros beyond the rank and the channels.
  SKETCHLAYERS_INLINE static float value(const ChannelFactorsParams& params, const FactorView& view,
                                         int group, int rank, int channel, int channels, int tap) {
    if (rank >= params.rank || channel >= channels) return 0.0f;
    return static_cast<float>(static_cast<const T*>(
        view.data)[group * view.group + rank * view.rank + channel * view.channel +
                   tap / params.kernel_w * view.row + tap % params.kernel_w * view.column]);
  }

  // Register bits from up to two neighbouring rows of a right matrix.
  template <typename Value>
  SKETCHLAYERS_INLINE static uint32_t register_bits(const Value& value, int row) {
    if constexpr (Traits::kStep == 16) {
      return Element<T>::pack(value(row), value(row + 1));
    } else {
      return Element<T>::prepare(bit_copy<uint32_t>(value(row)));
    }
  }

  // Unit `item` of (tap, step, pair of tiles, lane) of right fragments whose elements are
  // value(tap, row, tile, column of the tile).
  template <typename Value>
  SKETCHLAYERS_INLINE static Unit fragments_unit(int64_t item, int steps, int pairs,
                                                 const Value& value) {
    const int lane = static_cast<int>(item % kWarpSize);
    const int64_t fragment = item / kWarpSize;
    const int pair = static_cast<int>(fragment % pairs);
    const int first_row = static_cast<int>(fragment / pairs % steps) * Traits::kStep;
    const int tap = static_cast<int>(fragment / pairs / steps);
    Unit unit;
    SKETCHLAYERS_UNROLL
    for (int i = 0; i < 4; ++i) {
      const auto value_at = [&](int row) {
        return value(tap, first_row + row, 2 * pair + i / 2, lane / 4);
      };
      unit.word[i] = register_bits(value_at, right_row<T>(lane, i % 2));
    }
    return unit;
  }

  // Rows are channels, columns the rank.
  SKETCHLAYERS_INLINE static Unit first_unit(const ChannelFactorsParams& params, int64_t item,
                                             int group) {
    const int steps = static_cast<int>(ceil_divide(params.channels, Traits::kStep));
    return fragments_unit(
        item, steps, Traits::kRankPairs, [&](int tap, int row, int tile, int column) {
          return value(params, params.first, group, 8 * tile + column, row, params.channels, tap);
        });
  }

  // Rows are the rank, columns outputs.
  SKETCHLAYERS_INLINE static Unit second_unit(const ChannelFactorsParams& params, int64_t item,
                                              int group) {
    const int pairs = ChannelConv<Traits>::padded_pairs(params.outputs);
    return fragments_unit(item, Traits::kRankSteps, pairs,
                          [&](int tap, int row, int tile, int column) {
                            return value(params, params.second, group, row,
                                         output_column<Traits>(tile, column), params.outputs, tap);
                          });
  }

  // (word along the channels, rank)
  SKETCHLAYERS_INLINE static uint32_t first_word(const ChannelFactorsParams& params, int64_t item,
                                                 int group) {
    const int rank = static_cast<int>(item % Traits::kRank);
    if (rank >= params.rank) return 0;
    const SignsView& view = params.first_signs;
    return static_cast<uint32_t>(
        view.words[group * view.group + rank * view.rank + item / Traits::kRank]);
  }

  // (tile of outputs, word along the rank, output in the tile)
  SKETCHLAYERS_INLINE static uint32_t second_word(const ChannelFactorsParams& params, int64_t item,
                                                  int group) {
    const int64_t row = item / 8;
    const int output = output_column<Traits>(static_cast<int>(row / Traits::kRankWords),
                                             static_cast<int>(item % 8));
    if (output >= params.outputs) return 0;
    const int first = static_cast<int>(row % Traits::kRankWords) * kSignsPerWord;
    const SignsView& view = params.second_signs;
    const int32_t* const signs = view.words + group * view.group + output / kSignsPerWord;
    uint32_t word = 0;
    for (int bit = 0; bit < kSignsPerWord && first + bit < params.rank; ++bit) {
      const uint32_t source = static_cast<uint32_t>(signs[(first + bit) * view.rank]);
      word |= (source >> (output % kSignsPerWord) & 1u) << bit;
    }
    return word;
  }
};

}  // namespace sketchlayers::cuda
