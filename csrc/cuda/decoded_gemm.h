// A product of two matrices that are not in memory as such: an element may be a sign from its bit,
// or a number of any type. Tiles are decoded to float32 in shared memory; sums are float32. The
// depth may be split over blocks, whose partial sums a second kernel adds in a fixed order.
//
// A problem is a struct of plain values with
//   batches, rows, columns, depth
//   kLeftAlongDepth, kRightAlongDepth            which way neighbouring threads shall read
//   left(batch, row, k), right(batch, k, column)
//   store(batch, row, column, sum)
#pragma once

#include <algorithm>

#include "cuda/fragments.h"

namespace sketchlayers::cuda {

struct DecodedGemmTraits {
  static constexpr int kWarps = 8;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kRows = 64;  // of a block's tile
  static constexpr int kColumns = 128;
  static constexpr int kDepth = 16;         // decoded at a time
  static constexpr int kThreadRows = 4;     // neighbours
  static constexpr int kThreadColumns = 8;  // two fours, half a tile apart
  static constexpr int kThreadsAcross = kColumns / kThreadColumns;
  static constexpr int kLeftPitch = kRows + 4;
  static constexpr int kRightPitch = kColumns + 4;
  static constexpr int kBufferFloats = kDepth * (kLeftPitch + kRightPitch);
  static constexpr int kSharedBytes = 2 * kBufferFloats * static_cast<int>(sizeof(float));

  static_assert(kRows / kThreadRows * kThreadsAcross == kThreads, "every thread has sums");
  static_assert(kSharedBytes <= 48 << 10, "fits without asking for more shared memory");
};

struct Split {
  int64_t parts;   // of the depth
  int64_t length;  // of a part, whole chunks
  float* partial;  // (part, batch, row, column); null for one part, whose sums are final
};

template <typename Problem>
class DecodedGemm {
 public:
  using Traits = DecodedGemmTraits;

  struct Warp {
    PerLane<float> sums[Traits::kThreadRows][Traits::kThreadColumns];
  };

  SKETCHLAYERS_INLINE DecodedGemm(const Problem& problem, const Split& split, float* shared,
                                  int64_t tile, int64_t batch_and_part)
      : problem_(problem), split_(split), shared_(shared) {
    const int64_t across = (problem.columns + Traits::kColumns - 1) / Traits::kColumns;
    row_ = tile / across * Traits::kRows;
    column_ = tile % across * Traits::kColumns;
    batch_ = batch_and_part % problem.batches;
    part_ = batch_and_part / problem.batches;
    first_ = part_ * split.length;
    const int64_t left = problem.depth - first_;
    length_ = left < split.length ? left : split.length;
  }

  template <typename Block>
  SKETCHLAYERS_INLINE void run(Block& block) {
    const int64_t chunks = (length_ + Traits::kDepth - 1) / Traits::kDepth;
    block.each_warp([&](int warp, Warp& state) {
      clear_sums(state);
      decode(warp, 0);
    });
    block.synchronize();
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      block.each_warp([&](int warp, Warp& state) {
        if (chunk + 1 < chunks) decode(warp, chunk + 1);
        multiply(warp, state, chunk);
      });
      block.synchronize();
    }
    block.each_warp([&](int warp, Warp& state) { store(warp, state); });
  }

 private:
  SKETCHLAYERS_INLINE static void clear_sums(Warp& state) {
    SKETCHLAYERS_UNROLL
    for (int i = 0; i < Traits::kThreadRows; ++i) {
      SKETCHLAYERS_UNROLL
      for (int j = 0; j < Traits::kThreadColumns; ++j) {
        for_each_lane([&](int lane) { state.sums[i][j][lane] = 0.0f; });
      }
    }
  }

  SKETCHLAYERS_INLINE float* left(int64_t chunk) const {
    return shared_ + chunk % 2 * Traits::kBufferFloats;
  }
  SKETCHLAYERS_INLINE float* right(int64_t chunk) const {
    return left(chunk) + Traits::kDepth * Traits::kLeftPitch;
  }

  SKETCHLAYERS_INLINE void decode(int warp, int64_t chunk) {
    for_each_lane([&](int lane) {
      const int thread = warp * kWarpSize + lane;
      const int64_t start = chunk * Traits::kDepth;
      SKETCHLAYERS_UNROLL_BY(4)
      for (int i = 0; i < Traits::kDepth * Traits::kRows / Traits::kThreads; ++i) {
        const int at = thread + i * Traits::kThreads;
        const int k = Problem::kLeftAlongDepth ? at % Traits::kDepth : at / Traits::kRows;
        const int row = Problem::kLeftAlongDepth ? at / Traits::kDepth : at % Traits::kRows;
        const bool inside = start + k < length_ && row_ + row < problem_.rows;
        left(chunk)[k * Traits::kLeftPitch + row] =
            inside ? problem_.left(batch_, row_ + row, first_ + start + k) : 0.0f;
      }
      SKETCHLAYERS_UNROLL_BY(4)
      for (int i = 0; i < Traits::kDepth * Traits::kColumns / Traits::kThreads; ++i) {
        const int at = thread + i * Traits::kThreads;
        const int k = Problem::kRightAlongDepth ? at % Traits::kDepth : at / Traits::kColumns;
        const int column = Problem::kRightAlongDepth ? at / Traits::kDepth : at % Traits::kColumns;
        const bool inside = start + k < length_ && column_ + column < problem_.columns;
        right(chunk)[k * Traits::kRightPitch + column] =
            inside ? problem_.right(batch_, first_ + start + k, column_ + column) : 0.0f;
      }
    });
  }

  SKETCHLAYERS_INLINE static int thread_row(int thread) {
    return thread / Traits::kThreadsAcross * Traits::kThreadRows;
  }
  SKETCHLAYERS_INLINE static int thread_column(int thread, int j) {
    return thread % Traits::kThreadsAcross * 4 + j / 4 * (Traits::kColumns / 2) + j % 4;
  }

  SKETCHLAYERS_INLINE void multiply(int warp, Warp& state, int64_t chunk) {
    for_each_lane([&](int lane) {
      const int thread = warp * kWarpSize + lane;
      const float* const rows = left(chunk) + thread_row(thread);
      const float* const columns = right(chunk) + thread_column(thread, 0);
      SKETCHLAYERS_UNROLL_BY(4)
      for (int k = 0; k < Traits::kDepth; ++k) {
        const Unit a = *reinterpret_cast<const Unit*>(rows + k * Traits::kLeftPitch);
        Unit b[2];
        SKETCHLAYERS_UNROLL
        for (int half = 0; half < 2; ++half) {
          b[half] = *reinterpret_cast<const Unit*>(columns + k * Traits::kRightPitch +
                                                   half * (Traits::kColumns / 2));
        }
        SKETCHLAYERS_UNROLL
        for (int i = 0; i < Traits::kThreadRows; ++i) {
          SKETCHLAYERS_UNROLL
          for (int j = 0; j < Traits::kThreadColumns; ++j) {
            state.sums[i][j][lane] +=
                bit_copy<float>(a.word[i]) * bit_copy<float>(b[j / 4].word[j % 4]);
          }
        }
      }
    });
  }

  SKETCHLAYERS_INLINE void store(int warp, Warp& state) {
    SKETCHLAYERS_UNROLL
    for (int i = 0; i < Traits::kThreadRows; ++i) {
      SKETCHLAYERS_UNROLL
      for (int j = 0; j < Traits::kThreadColumns; ++j) {
        for_each_lane([&](int lane) {
          const int thread = warp * kWarpSize + lane;
          store_sum(row_ + thread_row(thread) + i, column_ + thread_column(thread, j),
                    state.sums[i][j][lane]);
        });
      }
    }
  }

  SKETCHLAYERS_INLINE void store_sum(int64_t row, int64_t column, float sum) {
    if (row >= problem_.rows || column >= problem_.columns) return;
    if (split_.partial == nullptr) {
      problem_.store(batch_, row, column, sum);
    } else {
      split_
          .partial[((part_ * problem_.batches + batch_) * problem_.rows + row) * problem_.columns +
                   column] = sum;
    }
  }

  const Problem& problem_;
  const Split& split_;
  float* shared_;
  int64_t row_, column_, batch_, part_;
  int64_t first_, length_;  // of the depth
};

// The second kernel: adds the parts of element `i` of (batch, row, column).
template <typename Problem>
SKETCHLAYERS_INLINE void add_parts(const Problem& problem, const Split& split, int64_t i) {
  const int64_t elements = problem.batches * problem.rows * problem.columns;
  float sum = 0.0f;
  for (int64_t part = 0; part < split.parts; ++part) sum += split.partial[part * elements + i];
  problem.store(i / problem.columns / problem.rows, i / problem.columns % problem.rows,
                i % problem.columns, sum);
}

// Blocks for a problem, and parts of the depth so that there are about `wanted` of them.
template <typename Problem>
int64_t tiles(const Problem& problem) {
  using Traits = DecodedGemmTraits;
  return (problem.rows + Traits::kRows - 1) / Traits::kRows *
         ((problem.columns + Traits::kColumns - 1) / Traits::kColumns);
}
template <typename Problem>
Split split_depth(const Problem& problem, int64_t wanted) {
  constexpr int64_t kLeast = 8 * DecodedGemmTraits::kDepth;  // worth a part of its own
  const int64_t blocks = tiles(problem) * problem.batches;
  const int64_t most = (problem.depth + kLeast - 1) / kLeast;
  const int64_t parts = std::max<int64_t>(1, std::min(most, wanted / blocks));
  const int64_t length = (problem.depth + parts - 1) / parts;
  const int64_t chunks = (length + DecodedGemmTraits::kDepth - 1) / DecodedGemmTraits::kDepth;
  const int64_t whole = chunks * DecodedGemmTraits::kDepth;
  return {(problem.depth + whole - 1) / whole, whole, nullptr};
}

}  // namespace sketchlayers::cuda
