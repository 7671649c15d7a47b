// The factored fully connected layer for a few vectors at a time, which is limited by reading the
// factors: each is read once, and signs come from their bits. Two kernels, float32 sums:
//   inner[b] = [S1 x[b], U2 x[b]],    y[b] = U1^T inner1[b] + S2 inner2[b]
// Partial sums are added in a fixed order.
#pragma once

#include "cuda/fragments.h"
#include "signs.h"

namespace sketchlayers::cuda {

constexpr int64_t kMostNarrowVectors = 16;

template <typename T, int kVectors_>
struct NarrowLinearTraits {
  using Type = T;
  static constexpr int kWarps = 8;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kPerUnit = Element<T>::kPerUnit;
  static constexpr int kVectors = kVectors_;  // that a block computes at a time
  // Rows of the rank in a block of the first kernel: more rows read the vectors less often.
  static constexpr int kRows = kVectors >= 8 ? 4 : 2;
  static constexpr int kOutputs = kWarpSize;  // of a block of the second kernel, one for each lane

  static_assert(kSignsPerWord % kPerUnit == 0, "the signs of a unit lie in one word");
  static_assert(2 * kRows * kVectors <= kThreads, "one thread for each sum of a block");
};

struct NarrowLinearParams {
  const void* input;  // (vectors, channels)
  const void* s1;     // (rank, channels)
  const void* s2;     // (outputs, rank)
  const int32_t* u1;  // (rank, output_words)
  const int32_t* u2;  // (rank, channel_words)
  const void* bias;   // (outputs), may be null
  float* inner;       // (vectors, 2, rank)
  void* output;       // (vectors, outputs)
  int64_t channels;
  int64_t outputs;
  int64_t channel_words;
  int64_t output_words;
  int vectors;
  int rank;
  float inner_scale;
  float outer_scale;
  bool row_units;  // rows of input and s1 can be read 16 bytes at a time
  bool s2_units;   // and s2 as one row of numbers
};

// A unit's worth of elements as float32; zeros beyond `count`.
template <typename T>
SKETCHLAYERS_INLINE void load_floats(float (&values)[Element<T>::kPerUnit], const T* from,
                                     int64_t count, bool whole_units) {
  constexpr int kPerUnit = Element<T>::kPerUnit;
  if (whole_units) {
    T elements[kPerUnit];
#if defined(__CUDA_ARCH__)
    const uint4 unit = __ldg(reinterpret_cast<const uint4*>(from));
#else
    const Unit unit = *reinterpret_cast<const Unit*>(from);
#endif
    memcpy(static_cast<void*>(elements), &unit, sizeof(unit));
    SKETCHLAYERS_UNROLL
    for (int i = 0; i < kPerUnit; ++i) values[i] = static_cast<float>(elements[i]);
    return;
  }
  SKETCHLAYERS_UNROLL
  for (int i = 0; i < kPerUnit; ++i) values[i] = i < count ? static_cast<float>(from[i]) : 0.0f;
}

// The first kernel: block (rows of the rank, vectors).
template <typename Traits>
class NarrowInner {
 public:
  using T = typename Traits::Type;
  static constexpr int kPerUnit = Traits::kPerUnit;
  static constexpr int kRows = Traits::kRows;
  static constexpr int kVectors = Traits::kVectors;

  struct Warp {
    PerLane<float> sums[2][kRows][kVectors];
  };

  static constexpr int64_t shared_bytes() {
    return static_cast<int64_t>(sizeof(float)) * Traits::kWarps * 2 * kRows * kVectors;
  }

  SKETCHLAYERS_INLINE NarrowInner(const NarrowLinearParams& params, unsigned char* shared,
                                  int64_t block, int vectors)
      : params_(params),
        partial_(reinterpret_cast<float*>(shared)),
        row_(static_cast<int>(block) * kRows),
        vector_(vectors * kVectors) {}

  template <typename Block>
  SKETCHLAYERS_INLINE void run(Block& block) {
    block.each_warp([&](int warp, Warp& state) { multiply(warp, state); });
    block.synchronize();
    block.each_warp([&](int warp, Warp&) { finish(warp); });
  }

 private:
  SKETCHLAYERS_INLINE void multiply(int warp, Warp& state) {
    for_each_sum([&](int half, int row, int vector) {
      for_each_lane([&](int lane) { state.sums[half][row][vector][lane] = 0.0f; });
    });
    for_each_lane([&](int lane) {
      for (int64_t at = static_cast<int64_t>(warp * kWarpSize + lane) * kPerUnit;
           at < params_.channels; at += Traits::kThreads * kPerUnit) {
        multiply_unit(state, lane, at);
      }
    });
    for_each_sum([&](int half, int row, int vector) {
      PerLane<float>& sum = state.sums[half][row][vector];
      sum_over_lanes(sum);
      for_each_lane([&](int lane) {
        if (lane == 0)
          partial_[(warp * 2 + half) * kRows * kVectors + row * kVectors + vector] = sum[lane];
      });
    });
  }

  template <typename Body>
  SKETCHLAYERS_INLINE static void for_each_sum(const Body& body) {
    SKETCHLAYERS_UNROLL
    for (int half = 0; half < 2; ++half) {
      SKETCHLAYERS_UNROLL
      for (int row = 0; row < kRows; ++row) {
        SKETCHLAYERS_UNROLL
        for (int vector = 0; vector < kVectors; ++vector) body(half, row, vector);
      }
    }
  }

  SKETCHLAYERS_INLINE void multiply_unit(Warp& state, int lane, int64_t at) {
    const int64_t count = params_.channels - at;
    float factor[kRows][kPerUnit];
    uint32_t bits[kRows];
    SKETCHLAYERS_UNROLL
    for (int row = 0; row < kRows; ++row) {
      // Rows beyond the last read it again; their sums are dropped.
      const int64_t source = row_ + row < params_.rank ? row_ + row : params_.rank - 1;
      load_floats<T>(factor[row],
                     static_cast<const T*>(params_.s1) + source * params_.channels + at, count,
                     params_.row_units);
      const int32_t* const signs = params_.u2 + source * params_.channel_words;
      bits[row] = static_cast<uint32_t>(signs[at / kSignsPerWord]) >> (at % kSignsPerWord);
    }
    SKETCHLAYERS_UNROLL
    for (int vector = 0; vector < kVectors; ++vector) {
      if (vector_ + vector >= params_.vectors) continue;
      float x[kPerUnit];
      load_floats<T>(
          x, static_cast<const T*>(params_.input) + (vector_ + vector) * params_.channels + at,
          count, params_.row_units);
      SKETCHLAYERS_UNROLL
      for (int row = 0; row < kRows; ++row) {
        SKETCHLAYERS_UNROLL
        for (int i = 0; i < kPerUnit; ++i) {
          state.sums[0][row][vector][lane] += factor[row][i] * x[i];
          const uint32_t flip = (bits[row] >> i & 1u) << 31;
          state.sums[1][row][vector][lane] += bit_copy<float>(bit_copy<uint32_t>(x[i]) ^ flip);
        }
      }
    }
  }

  SKETCHLAYERS_INLINE void finish(int warp) {
    for_each_lane([&](int lane) {
      const int i = warp * kWarpSize + lane;  // (half, row, vector)
      if (i >= 2 * kRows * kVectors) return;
      const int half = i / (kRows * kVectors);
      const int row = row_ + i / kVectors % kRows;
      const int vector = vector_ + i % kVectors;
      if (row >= params_.rank || vector >= params_.vectors) return;
      float sum = 0.0f;
      for (int w = 0; w < Traits::kWarps; ++w) sum += partial_[w * 2 * kRows * kVectors + i];
      const int64_t to = (static_cast<int64_t>(vector) * 2 + half) * params_.rank + row;
      params_.inner[to] = sum * params_.inner_scale;
    });
  }

  const NarrowLinearParams& params_;
  float* partial_;  // (warp, half, row, vector)
  int row_, vector_;
};

// The second kernel: block (outputs, vectors). A lane computes one output, a warp a part of the
// rank. Lanes start at different places of it, so that they read different banks.
template <typename Traits>
class NarrowOuter {
 public:
  using T = typename Traits::Type;
  static constexpr int kVectors = Traits::kVectors;
  static constexpr int kOutputs = Traits::kOutputs;

  struct Warp {};

  static int64_t shared_bytes(int64_t rank) {
    return factor_bytes(rank) + rank * static_cast<int64_t>(sizeof(uint32_t)) +
           static_cast<int64_t>(sizeof(float)) * kVectors * (2 * rank + Traits::kWarps * kOutputs);
  }

  SKETCHLAYERS_INLINE NarrowOuter(const NarrowLinearParams& params, unsigned char* shared,
                                  int64_t block, int vectors)
      : params_(params), output_(block * kOutputs), vector_(vectors * kVectors) {
    factor_ = reinterpret_cast<T*>(shared);
    words_ = reinterpret_cast<uint32_t*>(shared + factor_bytes(params.rank));
    inner_ = reinterpret_cast<float*>(words_ + params.rank);
    partial_ = inner_ + 2 * kVectors * params.rank;
  }

  template <typename Block>
  SKETCHLAYERS_INLINE void run(Block& block) {
    block.each_warp([&](int warp, Warp&) { load(warp); });
    block.synchronize();
    block.each_warp([&](int warp, Warp&) { multiply(warp); });
    block.synchronize();
    block.each_warp([&](int warp, Warp&) { finish(warp); });
  }

 private:
  SKETCHLAYERS_HOST_DEVICE static int64_t factor_bytes(int64_t rank) {
    return kOutputs * rank * static_cast<int64_t>(sizeof(T));
  }

  SKETCHLAYERS_INLINE void load(int warp) {
    for_each_lane([&](int lane) {
      const int thread = warp * kWarpSize + lane;
      load_factor(thread);
      const int64_t word = output_ / kSignsPerWord;
      for (int r = thread; r < params_.rank; r += Traits::kThreads) {
        words_[r] = static_cast<uint32_t>(params_.u1[r * params_.output_words + word]);
      }
      for (int i = thread; i < 2 * kVectors * params_.rank; i += Traits::kThreads) {
        const int vector = vector_ + i / (2 * params_.rank);
        inner_[i] = vector < params_.vectors
                        ? params_.inner[static_cast<int64_t>(vector_) * 2 * params_.rank + i]
                        : 0.0f;
      }
    });
    end_copies();
    wait_for_copies<0>();
  }

  // The block's rows of S2, which lie together.
  SKETCHLAYERS_INLINE void load_factor(int thread) {
    const int64_t rows =
        params_.outputs - output_ < kOutputs ? params_.outputs - output_ : kOutputs;
    const T* const from = static_cast<const T*>(params_.s2) + output_ * params_.rank;
    const int elements = static_cast<int>(rows) * params_.rank;
    const int whole = params_.s2_units ? elements / Traits::kPerUnit : 0;
    for (int i = thread; i < whole; i += Traits::kThreads) {
      copy_async(factor_ + i * Traits::kPerUnit, from + i * Traits::kPerUnit);
    }
    for (int i = whole * Traits::kPerUnit + thread; i < elements; i += Traits::kThreads) {
      factor_[i] = from[i];
    }
  }

  SKETCHLAYERS_INLINE void multiply(int warp) {
    const int part = (params_.rank + Traits::kWarps - 1) / Traits::kWarps;
    const int first = warp * part;
    const int length = params_.rank - first < part ? params_.rank - first : part;
    for_each_lane([&](int lane) {
      float sums[kVectors];
      SKETCHLAYERS_UNROLL
      for (int vector = 0; vector < kVectors; ++vector) sums[vector] = 0.0f;
      if (output_ + lane < params_.outputs && length > 0) {
        int r = first + lane % length;
        for (int i = 0; i < length; ++i) {
          const float s2 = static_cast<float>(factor_[lane * params_.rank + r]);
          const uint32_t flip = (words_[r] >> lane & 1u) << 31;
          SKETCHLAYERS_UNROLL
          for (int vector = 0; vector < kVectors; ++vector) {
            const float* const inner = inner_ + 2 * params_.rank * vector;
            const float with_sign = bit_copy<float>(bit_copy<uint32_t>(inner[r]) ^ flip);
            sums[vector] += with_sign + s2 * inner[params_.rank + r];
          }
          r = r + 1 == first + length ? first : r + 1;
        }
      }
      SKETCHLAYERS_UNROLL
      for (int vector = 0; vector < kVectors; ++vector) {
        partial_[(warp * kVectors + vector) * kOutputs + lane] = sums[vector];
      }
    });
  }

  SKETCHLAYERS_INLINE void finish(int warp) {
    for_each_lane([&](int lane) {
      const int64_t output = output_ + lane;
      for (int vector = warp; vector < kVectors; vector += Traits::kWarps) {
        if (vector_ + vector >= params_.vectors || output >= params_.outputs) continue;
        float sum = 0.0f;
        for (int w = 0; w < Traits::kWarps; ++w) {
          sum += partial_[(w * kVectors + vector) * kOutputs + lane];
        }
        sum *= params_.outer_scale;
        if (params_.bias != nullptr) {
          sum += static_cast<float>(static_cast<const T*>(params_.bias)[output]);
        }
        static_cast<T*>(params_.output)[(vector_ + vector) * params_.outputs + output] =
            static_cast<T>(sum);
      }
    });
  }

  const NarrowLinearParams& params_;
  int64_t output_;
  int vector_;
  T* factor_;        // (output, rank)
  uint32_t* words_;  // signs of the block's outputs for each row of the rank
  float* inner_;     // (vector, half, rank)
  float* partial_;   // (warp, vector, output)
};

}  // namespace sketchlayers::cuda
