// The bodies of VectorKernels for SKETCHLAYERS_LANES floats in a vector, written with the vector
// types that GCC and Clang share; included once for each instruction set.

#if !defined(__clang__)
// Vectors are passed between functions of this file alone, so that their calling convention is
// nobody else's matter.
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

namespace sketchlayers::cpu::SKETCHLAYERS_VECTOR_NAMESPACE {
namespace {

constexpr int kLanes = SKETCHLAYERS_LANES;

typedef float Vector __attribute__((vector_size(kLanes * 4)));
typedef int32_t Bits __attribute__((vector_size(kLanes * 4)));
typedef float Unaligned __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

#define SKETCHLAYERS_UNROLL _Pragma("GCC unroll 64")

inline Vector load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
inline void store(float* p, Vector v) { *reinterpret_cast<Unaligned*>(p) = v; }
inline Vector splat(float value) { return Vector{} + value; }

// The first `count` of a vector's floats, 1 to kLanes; the others are zeros, and left alone.
#if SKETCHLAYERS_LANES == 16
inline __mmask16 first_lanes(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }
inline Vector load_partial(const float* p, int64_t count) {
  return (Vector)_mm512_maskz_loadu_ps(first_lanes(count), p);
}
inline void store_partial(float* p, Vector v, int64_t count) {
  _mm512_mask_storeu_ps(p, first_lanes(count), (__m512)v);
}
#elif SKETCHLAYERS_LANES == 8
inline __m256i first_lanes(int64_t count) {
  return (__m256i)(Bits{0, 1, 2, 3, 4, 5, 6, 7} < Bits{} + static_cast<int32_t>(count));
}
inline Vector load_partial(const float* p, int64_t count) {
  return (Vector)_mm256_maskload_ps(p, first_lanes(count));
}
inline void store_partial(float* p, Vector v, int64_t count) {
  _mm256_maskstore_ps(p, first_lanes(count), (__m256)v);
}
#else
inline Vector load_partial(const float* p, int64_t count) {
  Vector v{};
  for (int64_t i = 0; i < count; ++i) v[i] = p[i];
  return v;
}
inline void store_partial(float* p, Vector v, int64_t count) {
  for (int64_t i = 0; i < count; ++i) p[i] = v[i];
}
#endif

// bfloat16 is the upper half of a float32.
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));
typedef uint16_t UnalignedHalves __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));

inline Vector widened(Halves halves) {
  return (Vector)(__builtin_convertvector(halves, Bits) << 16);
}
inline Vector load(const uint16_t* p) {
  return widened(*reinterpret_cast<const UnalignedHalves*>(p));
}
inline Vector load_partial(const uint16_t* p, int64_t count) {
  Halves halves{};
  for (int64_t i = 0; i < count; ++i) halves[i] = p[i];
  return widened(halves);
}

// The lanes whose bits, from bit `first` on, are set; the others are zeros.
#if SKETCHLAYERS_LANES == 16
constexpr bool kTakesMasks = true;
inline Vector load_masked(const float* p, uint16_t mask, int /*first*/) {
  return (Vector)_mm512_maskz_loadu_ps(mask, p);
}
#elif SKETCHLAYERS_LANES == 8
constexpr bool kTakesMasks = true;
inline Vector load_masked(const float* p, uint16_t mask, int first) {
  const Bits word = Bits{} + (static_cast<int32_t>(mask) << (24 - first));
  return (Vector)_mm256_maskload_ps(p, (__m256i)(word << Bits{7, 6, 5, 4, 3, 2, 1, 0}));
}
#else
constexpr bool kTakesMasks = false;
inline Vector load_masked(const float* p, uint16_t /*mask*/, int /*first*/) { return load(p); }
#endif

// ---------------------------------------------------------------------------------------- rows

inline void clear(float* p, int64_t count) {
  for (int64_t i = 0; i < count; ++i) p[i] = 0.0f;
}

void copy_rows(const float* in, int64_t in_row, int64_t rows, int64_t columns, float* out,
               int64_t out_row, int64_t before, int64_t after) {
  const int64_t whole = columns / kLanes * kLanes;
  for (int64_t r = 0; r < rows; ++r) {
    float* target = out + r * out_row;
    clear(target, before);
    target += before;
    const float* source = in + r * in_row;
    for (int64_t i = 0; i < whole; i += kLanes) store(target + i, load(source + i));
    if (whole < columns) {
      store_partial(target + whole, load_partial(source + whole, columns - whole), columns - whole);
    }
    clear(target + columns, after);
  }
}

// ------------------------------------------------------------------------------------- product

// A block of the result stays in registers: MR rows by NV vectors, with room left for the NV
// vectors of b and one broadcast of w.
constexpr int kMostVectors = kLanes == 16 ? 4 : kLanes == 8 ? 2 : 4;
constexpr int most_rows(int vectors) {
  if (kLanes == 16) return vectors == 4 ? 6 : vectors == 3 ? 8 : vectors == 2 ? 12 : 14;
  if (kLanes == 8) return vectors == 2 ? 6 : 12;
#if defined(__aarch64__)
  return vectors == 4 ? 6 : 8;
#else
  return vectors == 4 ? 2 : 4;
#endif
}

constexpr int64_t kPrefetchTaps = 32;
constexpr int64_t kPrefetchRows = 16;  // of b, where there is one tap
constexpr int64_t kCachedRows = 128;
constexpr int64_t kLineFloats = 16;

template <int MR, int NV>
__attribute__((noinline)) void block(const Product* parts, int count, int64_t row, int64_t column,
                                     const float* bias, float* out, int64_t out_row, bool add) {
  Vector sum[MR][NV];
  SKETCHLAYERS_UNROLL
  for (int m = 0; m < MR; ++m) {
    SKETCHLAYERS_UNROLL
    for (int v = 0; v < NV; ++v) sum[m][v] = Vector{};
  }
  for (int part = 0; part < count; ++part) {
    const Product& p = parts[part];
    const float* w_outer = p.w + row * p.w_row;
    const float* b_outer = p.b + column;
    const int64_t w_row = p.w_row;
    const int32_t* w_tap = p.w_tap;
    const int32_t* b_tap = p.b_tap;
    const int64_t taps = p.taps;
    // Taps touch a line many times in a row and then leave it, so that no prefetcher of the
    // processor sees what comes next: some channels ahead, all lines that the taps will read.
    // Offsets rise or fall from the first tap to the last.
    if (taps == 0) continue;
    // After the first rows, b is in the first-level cache, if it fits.
    const bool fetches = row == 0 || p.outer * taps > kCachedRows;
    if (taps == 1 && !(kTakesMasks && p.mask)) {  // a matrix product
      const float* w = w_outer + w_tap[0];
      const float* b = b_outer + b_tap[0];
      const auto multiply = [&](const auto& fetch) {
        for (int64_t o = 0; o < p.outer; ++o) {
          fetch(b);
          Vector x[NV];
          SKETCHLAYERS_UNROLL
          for (int v = 0; v < NV; ++v) x[v] = load(b + v * kLanes);
          SKETCHLAYERS_UNROLL
          for (int m = 0; m < MR; ++m) {
            const float factor = w[m * w_row];
            SKETCHLAYERS_UNROLL
            for (int v = 0; v < NV; ++v) sum[m][v] += factor * x[v];
          }
          w += p.w_outer;
          b += p.b_outer;
        }
      };
      if (fetches) {
        multiply([&](const float* b) {
          SKETCHLAYERS_UNROLL
          for (int v = 0; v < NV * kLanes; v += kLineFloats) {
            __builtin_prefetch(b + kPrefetchRows * p.b_outer + v);
          }
        });
      } else {
        multiply([](const float*) {});
      }
      continue;
    }
    const int64_t ahead = (kPrefetchTaps + taps - 1) / taps * p.b_outer;
    const int64_t lowest = b_tap[0] < b_tap[taps - 1] ? b_tap[0] : b_tap[taps - 1];
    const int64_t highest = b_tap[0] + b_tap[taps - 1] - lowest + NV * kLanes;
    const auto accumulate = [&](const auto& read) {
      for (int64_t o = 0; o < p.outer; ++o) {
        for (int64_t i = lowest; fetches && o + 1 < p.outer && i < highest; i += kLineFloats) {
          __builtin_prefetch(b_outer + ahead + i);
        }
        for (int64_t t = 0; t < taps; ++t) {
          const float* w = w_outer + w_tap[t];
          const float* b = b_outer + b_tap[t];
          Vector x[NV];
          SKETCHLAYERS_UNROLL
          for (int v = 0; v < NV; ++v) x[v] = read(b + v * kLanes, t, v * kLanes);
          SKETCHLAYERS_UNROLL
          for (int m = 0; m < MR; ++m) {
            const float factor = w[m * w_row];
            SKETCHLAYERS_UNROLL
            for (int v = 0; v < NV; ++v) sum[m][v] += factor * x[v];
          }
        }
        w_outer += p.w_outer;
        b_outer += p.b_outer;
      }
    };
    if (kTakesMasks && p.mask) {
      const uint16_t* mask = p.mask + column / kColumnStep;
      const int first = static_cast<int>(column % kColumnStep);
      const int64_t mask_tap = p.mask_tap;
      if (mask_tap == 0) {  // masks that stay in registers
        uint16_t own[NV];
        SKETCHLAYERS_UNROLL
        for (int v = 0; v < NV; ++v) own[v] = mask[(first + v * kLanes) / kColumnStep];
        accumulate([&](const float* b, int64_t, int lane) {
          return load_masked(b, own[lane / kLanes], (first + lane) % kColumnStep);
        });
        continue;
      }
      accumulate([=](const float* b, int64_t t, int lane) {
        const int64_t step = (first + lane) / kColumnStep;
        return load_masked(b, mask[t * mask_tap + step], (first + lane) % kColumnStep);
      });
    } else {
      accumulate([](const float* b, int64_t, int) { return load(b); });
    }
  }
  SKETCHLAYERS_UNROLL
  for (int m = 0; m < MR; ++m) {
    const float start = bias ? bias[row + m] : 0.0f;
    SKETCHLAYERS_UNROLL
    for (int v = 0; v < NV; ++v) {
      float* target = out + (row + m) * out_row + column + v * kLanes;
      Vector value = sum[m][v] + start;
      if (add) value += load(target);
      store(target, value);
    }
  }
}

template <int MR, int NV>
void block_of_rows(int64_t rows, const Product* parts, int count, int64_t row, int64_t column,
                   const float* bias, float* out, int64_t out_row, bool add) {
  if constexpr (MR > 0) {
    if (rows == MR) {
      block<MR, NV>(parts, count, row, column, bias, out, out_row, add);
    } else {
      block_of_rows<MR - 1, NV>(rows, parts, count, row, column, bias, out, out_row, add);
    }
  }
}

// `vectors` columns of vectors, NV at most. Rows in blocks that differ by one at most, so that no
// block is left with a row or two.
template <int NV>
void strip(int64_t vectors, const Product* parts, int count, int64_t rows, int64_t column,
           const float* bias, float* out, int64_t out_row, bool add) {
  if constexpr (NV > 1) {
    if (vectors < NV) {
      strip<NV - 1>(vectors, parts, count, rows, column, bias, out, out_row, add);
      return;
    }
  }
  const int64_t blocks = (rows + most_rows(NV) - 1) / most_rows(NV);
  int64_t row = 0;
  for (int64_t i = 1; i <= blocks; ++i) {
    const int64_t end = rows * i / blocks;
    block_of_rows<most_rows(NV), NV>(end - row, parts, count, row, column, bias, out, out_row, add);
    row = end;
  }
}

void product(const Product* parts, int count, int64_t rows, int64_t columns, const float* bias,
             float* out, int64_t out_row, bool add) {
  const int64_t vectors = columns / kLanes;
  const int64_t strips = (vectors + kMostVectors - 1) / kMostVectors;
  int64_t vector = 0;
  for (int64_t i = 1; i <= strips; ++i) {
    const int64_t end = vectors * i / strips;
    strip<kMostVectors>(end - vector, parts, count, rows, vector * kLanes, bias, out, out_row, add);
    vector = end;
  }
}

// ----------------------------------------------------------------------------------- depthwise

// So many steps of columns at a time, as their sums, and their masks, fit into registers.
constexpr int kMostSteps = kLanes == 16 ? 6 : kLanes == 8 ? 2 : 1;
constexpr int kStepVectors = kColumnStep / kLanes;

template <int Steps>
void depthwise_columns(const Product* parts, int count, int64_t row, int64_t column, float* out) {
  Vector sum[Steps * kStepVectors];
  SKETCHLAYERS_UNROLL
  for (int v = 0; v < Steps * kStepVectors; ++v) sum[v] = Vector{};
  for (int part = 0; part < count; ++part) {
    const Product& p = parts[part];
    const float* w = p.w + row * p.w_row;
    const float* b = p.b + row * p.b_outer + column;
    const auto accumulate = [&](const auto& read) {
      for (int64_t t = 0; t < p.taps; ++t) {
        const float factor = w[p.w_tap[t]];
        const float* x = b + p.b_tap[t];
        SKETCHLAYERS_UNROLL
        for (int v = 0; v < Steps * kStepVectors; ++v) sum[v] += factor * read(x, v);
      }
    };
    if (kTakesMasks && p.mask) {
      uint16_t mask[Steps];
      SKETCHLAYERS_UNROLL
      for (int s = 0; s < Steps; ++s) mask[s] = p.mask[column / kColumnStep + s];
      accumulate([&](const float* x, int v) {
        return load_masked(x + v * kLanes, mask[v / kStepVectors], v % kStepVectors * kLanes);
      });
    } else {
      accumulate([](const float* x, int v) { return load(x + v * kLanes); });
    }
  }
  SKETCHLAYERS_UNROLL
  for (int v = 0; v < Steps * kStepVectors; ++v) store(out + column + v * kLanes, sum[v]);
}

template <int Steps>
void depthwise_rest(int64_t steps, const Product* parts, int count, int64_t row, int64_t column,
                    float* out) {
  if constexpr (Steps > 0) {
    if (steps == Steps) {
      depthwise_columns<Steps>(parts, count, row, column, out);
    } else {
      depthwise_rest<Steps - 1>(steps, parts, count, row, column, out);
    }
  }
}

void depthwise(const Product* parts, int count, int64_t rows, int64_t columns, float* out,
               int64_t out_row) {
  const int64_t steps = columns / kColumnStep;
  for (int64_t row = 0; row < rows; ++row) {
    float* target = out + row * out_row;
    int64_t step = 0;
    for (; step + kMostSteps <= steps; step += kMostSteps) {
      depthwise_columns<kMostSteps>(parts, count, row, step * kColumnStep, target);
    }
    depthwise_rest<kMostSteps - 1>(steps - step, parts, count, row, step * kColumnStep, target);
  }
}

template <int Pixels, int Vectors>
inline void depthwise_block(const float* w, int64_t w_row, int64_t taps, const float* b,
                            int64_t b_step, const int32_t* b_tap, float* out, int64_t out_step) {
  Vector sum[Pixels][Vectors];
  SKETCHLAYERS_UNROLL
  for (int p = 0; p < Pixels; ++p) {
    SKETCHLAYERS_UNROLL
    for (int v = 0; v < Vectors; ++v) sum[p][v] = Vector{};
  }
  for (int64_t t = 0; t < taps; ++t) {
    const float* source = b + b_tap[t];
    Vector factor[Vectors];
    SKETCHLAYERS_UNROLL
    for (int v = 0; v < Vectors; ++v) factor[v] = load(w + t * w_row + v * kLanes);
    SKETCHLAYERS_UNROLL
    for (int p = 0; p < Pixels; ++p) {
      SKETCHLAYERS_UNROLL
      for (int v = 0; v < Vectors; ++v) {
        sum[p][v] += factor[v] * load(source + p * b_step + v * kLanes);
      }
    }
  }
  SKETCHLAYERS_UNROLL
  for (int p = 0; p < Pixels; ++p) {
    SKETCHLAYERS_UNROLL
    for (int v = 0; v < Vectors; ++v) store(out + p * out_step + v * kLanes, sum[p][v]);
  }
}

void depthwise_pixels(const float* w, int64_t w_row, int64_t taps, const float* b, int64_t b_step,
                      const int32_t* b_tap, int64_t pixels, int64_t columns, float* out,
                      int64_t out_step) {
  constexpr int kPixels = 4;
  constexpr int kVectors = kStepVectors > 2 ? kStepVectors : 2;  // whole steps
  int64_t column = 0;
  const auto strip = [&](auto vectors) {
    constexpr int kOwn = decltype(vectors)::value;
    int64_t p = 0;
    for (; p + kPixels <= pixels; p += kPixels) {
      depthwise_block<kPixels, kOwn>(w + column, w_row, taps, b + p * b_step + column, b_step,
                                     b_tap, out + p * out_step + column, out_step);
    }
    for (; p < pixels; ++p) {
      depthwise_block<1, kOwn>(w + column, w_row, taps, b + p * b_step + column, b_step, b_tap,
                               out + p * out_step + column, out_step);
    }
    column += kOwn * kLanes;
  };
  while (column + kVectors * kLanes <= columns) strip(std::integral_constant<int, kVectors>());
  while (column < columns) strip(std::integral_constant<int, kStepVectors>());
}

// ----------------------------------------------------------------------------------- transpose

#if defined(__clang__)
#define SKETCHLAYERS_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SKETCHLAYERS_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Bits{__VA_ARGS__})
#endif

// One stage of a transposition exchanges, in pairs of rows, the halves of ever larger groups: the
// lanes of the lower row keep the first half of every group of 2 Step, those of the upper the
// second.
template <int Step, int... Lane>
inline Vector lower(Vector a, Vector b, std::integer_sequence<int, Lane...>) {
  return SKETCHLAYERS_SHUFFLE(a, b, (Lane & Step ? kLanes + Lane - Step : Lane)...);
}
template <int Step, int... Lane>
inline Vector upper(Vector a, Vector b, std::integer_sequence<int, Lane...>) {
  return SKETCHLAYERS_SHUFFLE(a, b, (Lane & Step ? kLanes + Lane : Lane + Step)...);
}

template <int Step>
inline void transpose_stages(Vector (&rows)[kLanes]) {
  if constexpr (Step > 0) {
    SKETCHLAYERS_UNROLL
    for (int i = 0; i < kLanes; ++i) {
      if ((i & Step) == 0) {
        const Vector a = rows[i];
        const Vector b = rows[i + Step];
        rows[i] = lower<Step>(a, b, std::make_integer_sequence<int, kLanes>());
        rows[i + Step] = upper<Step>(a, b, std::make_integer_sequence<int, kLanes>());
      }
    }
    transpose_stages<Step / 2>(rows);
  }
}

// Rows are often as far apart as pages, where nothing sees what comes next.
constexpr int64_t kPrefetchSteps = 8;

inline void transpose_square(Vector (&rows)[kLanes]) { transpose_stages<kLanes / 2>(rows); }

void transpose(const float* in, int64_t in_row, int64_t rows, int64_t columns, float* out,
               int64_t out_row, bool padded) {
  for (int64_t m = 0; m < rows; m += kLanes) {
    const int64_t height = rows - m < kLanes ? rows - m : kLanes;
    for (int64_t n = 0; n < columns; n += kLanes) {
      const int64_t width = columns - n < kLanes ? columns - n : kLanes;
      Vector square[kLanes];
      if (height == kLanes && width == kLanes) {
        SKETCHLAYERS_UNROLL
        for (int i = 0; i < kLanes; ++i) {
          __builtin_prefetch(in + (m + i) * in_row + n + kPrefetchSteps * kLanes);
          square[i] = load(in + (m + i) * in_row + n);
        }
      } else {
        for (int i = 0; i < kLanes; ++i) {
          square[i] = i < height ? load_partial(in + (m + i) * in_row + n, width) : Vector{};
        }
      }
      transpose_square(square);
      float* target = out + n * out_row + m;
      if (height == kLanes || padded) {
        for (int64_t i = 0; i < width; ++i) store(target + i * out_row, square[i]);
      } else {
        for (int64_t i = 0; i < width; ++i) store_partial(target + i * out_row, square[i], height);
      }
    }
  }
}

// --------------------------------------------------------------------------------------- signs

// Sixteen signs, starting at a multiple of sixteen.
inline uint32_t sixteen_signs(const int32_t* packed_row, int64_t column) {
  return static_cast<uint32_t>(packed_row[column / 32]) >> (column % 32);
}

// What flips the signs of a vector where bit (first + lane) is 1.
#if SKETCHLAYERS_LANES == 16
typedef __mmask16 Flips;
inline Flips flips(uint32_t bits, int /*first*/) { return static_cast<__mmask16>(bits); }
inline Vector flip(Vector value, Flips flips) {
  const __m512 own = (__m512)value;
  return (Vector)_mm512_mask_xor_ps(own, flips, own, _mm512_set1_ps(-0.0f));
}
#else
typedef Bits Flips;
inline Flips flips(uint32_t bits, int first) {
  Bits shift;
  SKETCHLAYERS_UNROLL
  for (int i = 0; i < kLanes; ++i) shift[i] = 31 - first - i;
  const Bits word = Bits{} + static_cast<int32_t>(bits);
  return (word << shift) & (Bits{} + INT32_MIN);
}
inline Vector flip(Vector value, Flips flips) { return (Vector)((Bits)value ^ flips); }
#endif

void expand_signs(const int32_t* packed_row, int64_t start, int64_t count, float magnitude,
                  float* out) {
  const Vector value = splat(magnitude);
  for (int64_t i = 0; i < count; i += kColumnStep) {
    const uint32_t bits = sixteen_signs(packed_row, start + i);
    SKETCHLAYERS_UNROLL
    for (int lane = 0; lane < kColumnStep; lane += kLanes) {
      store(out + i + lane, flip(value, flips(bits, lane)));
    }
  }
}

// ----------------------------------------------------------------------------- pairs of 16 bits

typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));
typedef uint32_t UnalignedWords __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

inline uint32_t signed_pair(uint32_t pair, uint32_t upper, uint32_t lower) {
  return pair ^ (upper & 1u) << 15 ^ (lower & 1u) << 31;
}

void interleave(const uint16_t* upper, const uint16_t* lower, int64_t count, uint32_t* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = upper[i] | static_cast<uint32_t>(lower[i]) << 16;
}

void separate(const uint32_t* pairs, int64_t count, uint16_t* upper, uint16_t* lower) {
  for (int64_t i = 0; i < count; ++i) {
    upper[i] = static_cast<uint16_t>(pairs[i]);
    lower[i] = static_cast<uint16_t>(pairs[i] >> 16);
  }
}

void sign_pairs_of_words(const uint32_t* words, int64_t count, int shift, uint32_t pair,
                         uint32_t* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Words bits = *reinterpret_cast<const UnalignedWords*>(words + i) >> shift;
    *reinterpret_cast<UnalignedWords*>(out + i) =
        (Words{} + pair) ^ (bits & 1u) << 15 ^ (bits & 2u) << 30;
  }
  for (; i < count; ++i) out[i] = signed_pair(pair, words[i] >> shift, words[i] >> (shift + 1));
}

// To nearest, ties to even.
inline uint16_t rounded(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  const uint32_t upper = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  return static_cast<uint16_t>(value != value ? 0x7fc0u : upper);
}

// A whole step, which needs no loop over a rest.
inline void round_step(const float* in, uint16_t* out) {
  for (int64_t i = 0; i < kColumnStep; ++i) out[i] = rounded(in[i]);
}

void to_bfloat16(const float* in, int64_t count, float factor, const float* bias, uint16_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = rounded(in[i] * factor + (bias ? bias[i] : 0.0f));
  }
}

void round_rows(const float* in, int64_t in_row, int64_t rows, int64_t columns, uint16_t* out,
                int64_t out_row) {
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < columns; n += kColumnStep) {
      round_step(in + m * in_row + n, out + m * out_row + n);
    }
  }
}

void gather_features(const float* made, int64_t made_row, const uint16_t* mixed, int64_t mixed_row,
                     const int32_t* sources, int64_t taps, int64_t features, int64_t pixels,
                     uint16_t* out, int64_t out_row) {
  constexpr int kVectors = kColumnStep / kLanes;
  constexpr int64_t kLine = 32;
  static const uint16_t kZeros[kColumnStep] = {};
  const int64_t length = (made ? taps + 1 : taps) * features;
  const int64_t whole = (length + kLine - 1) / kLine * kLine;
  for (int64_t p = 0; p < pixels; ++p, sources += taps, out += out_row) {
    for (int64_t t = 0; t < taps; ++t) {
      for (int64_t n = 0; n < features; n += kColumnStep) {
        const uint16_t* from = sources[t] < 0 ? kZeros : mixed + sources[t] * mixed_row + n;
        __builtin_memcpy(out + t * features + n, from, sizeof kZeros);
      }
    }
    for (int64_t n = 0; made && n < features; n += kColumnStep) {
      Vector sum[kVectors] = {};
      for (int64_t t = 0; t < taps; ++t) {
        if (sources[t] < 0) continue;
        const float* from = made + sources[t] * made_row + t * features + n;
        SKETCHLAYERS_UNROLL
        for (int i = 0; i < kVectors; ++i) sum[i] += load(from + i * kLanes);
      }
      float sums[kColumnStep];
      for (int i = 0; i < kVectors; ++i) store(sums + i * kLanes, sum[i]);
      round_step(sums, out + taps * features + n);
    }
    for (int64_t i = length; i < whole; ++i) out[i] = 0;
  }
}

void sign_pairs_of_bits(uint32_t upper, uint32_t lower, int64_t count, uint32_t pair,
                        uint32_t* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = signed_pair(pair, upper >> i, lower >> i);
}

// --------------------------------------------------------------------------------- few vectors

inline float sum_of(Vector v) {
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += v[i];
  return sum;
}

template <int Rows, int Batch, typename S>
void sketch_block(const S* s, int64_t s_row, const int32_t* signs, int64_t words, int64_t length,
                  const float* x, int64_t x_row, float* dense, float* signed_, int64_t out_row) {
  Vector dense_sum[Rows][Batch];
  Vector signed_sum[Rows][Batch];
  SKETCHLAYERS_UNROLL
  for (int r = 0; r < Rows; ++r) {
    SKETCHLAYERS_UNROLL
    for (int b = 0; b < Batch; ++b) dense_sum[r][b] = signed_sum[r][b] = Vector{};
  }
  int64_t i = 0;
  for (; i + kColumnStep <= length; i += kColumnStep) {
    uint32_t bits[Rows];
    SKETCHLAYERS_UNROLL
    for (int r = 0; r < Rows; ++r) bits[r] = sixteen_signs(signs + r * words, i);
    SKETCHLAYERS_UNROLL
    for (int lane = 0; lane < kColumnStep; lane += kLanes) {
      Vector value[Batch];
      SKETCHLAYERS_UNROLL
      for (int b = 0; b < Batch; ++b) value[b] = load(x + b * x_row + i + lane);
      SKETCHLAYERS_UNROLL
      for (int r = 0; r < Rows; ++r) {
        const Vector factor = load(s + r * s_row + i + lane);
        const Flips flipped = flips(bits[r], lane);
        SKETCHLAYERS_UNROLL
        for (int b = 0; b < Batch; ++b) {
          dense_sum[r][b] += factor * value[b];
          signed_sum[r][b] += flip(value[b], flipped);
        }
      }
    }
  }
  for (; i < length; i += kLanes) {
    const int64_t left = length - i < kLanes ? length - i : kLanes;
    for (int r = 0; r < Rows; ++r) {
      const Vector factor = load_partial(s + r * s_row + i, left);
      const Flips flipped = flips(sixteen_signs(signs + r * words, i & ~(kColumnStep - 1)),
                                  static_cast<int>(i % kColumnStep));
      for (int b = 0; b < Batch; ++b) {
        const Vector value = load(x + b * x_row + i);
        dense_sum[r][b] += factor * value;
        signed_sum[r][b] += flip(value, flipped);
      }
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int b = 0; b < Batch; ++b) {
      dense[b * out_row + r] = sum_of(dense_sum[r][b]);
      signed_[b * out_row + r] = sum_of(signed_sum[r][b]);
    }
  }
}

template <int Batch, typename S>
void sketch_batch(const S* s, int64_t s_row, const int32_t* signs, int64_t words, int64_t rows,
                  int64_t length, const float* x, int64_t x_row, float* dense, float* signed_,
                  int64_t out_row) {
  constexpr int kRows = Batch <= 2 ? 4 : 2;
  int64_t row = 0;
  for (; row + kRows <= rows; row += kRows) {
    sketch_block<kRows, Batch>(s + row * s_row, s_row, signs + row * words, words, length, x, x_row,
                               dense + row, signed_ + row, out_row);
  }
  for (; row < rows; ++row) {
    sketch_block<1, Batch>(s + row * s_row, s_row, signs + row * words, words, length, x, x_row,
                           dense + row, signed_ + row, out_row);
  }
}

template <typename S>
void sketch_vectors(const S* s, int64_t s_row, const int32_t* signs, int64_t words, int64_t rows,
                    int64_t length, const float* x, int64_t x_row, int64_t batch, float* dense,
                    float* signed_, int64_t out_row) {
  const auto run = batch == 1   ? sketch_batch<1, S>
                   : batch == 2 ? sketch_batch<2, S>
                   : batch == 3 ? sketch_batch<3, S>
                                : sketch_batch<4, S>;
  run(s, s_row, signs, words, rows, length, x, x_row, dense, signed_, out_row);
}

// Dot products of a vector's worth of rows, in the lanes of one vector.
template <int Batch, typename S>
void dots_of_rows(const S* s, int64_t s_row, int64_t rows, int64_t rank, const float* dense,
                  int64_t in_row, Vector (&out)[Batch]) {
  Vector sums[Batch][kLanes] = {};
  for (int64_t row = 0; row < rows; ++row) {
    const S* factor = s + row * s_row;
    Vector sum[Batch] = {};
    int64_t j = 0;
    for (; j + kLanes <= rank; j += kLanes) {
      const Vector loaded = load(factor + j);
      SKETCHLAYERS_UNROLL
      for (int b = 0; b < Batch; ++b) sum[b] += loaded * load(dense + b * in_row + j);
    }
    if (j < rank) {
      const Vector loaded = load_partial(factor + j, rank - j);
      SKETCHLAYERS_UNROLL
      for (int b = 0; b < Batch; ++b) sum[b] += loaded * load(dense + b * in_row + j);
    }
    SKETCHLAYERS_UNROLL
    for (int b = 0; b < Batch; ++b) sums[b][row] = sum[b];
  }
  for (int b = 0; b < Batch; ++b) {
    transpose_square(sums[b]);
    Vector sum = sums[b][0];
    SKETCHLAYERS_UNROLL
    for (int i = 1; i < kLanes; ++i) sum += sums[b][i];
    out[b] = sum;
  }
}

template <int Batch, typename S>
void combine_batch(const S* s, int64_t s_row, const int32_t* signs, int64_t words, int64_t first,
                   int64_t count, int64_t rank, const float* dense, const float* signed_,
                   int64_t in_row, const float* bias, float* y, int64_t y_row) {
  for (int64_t o = first; o < first + count; o += kLanes) {
    const int64_t rows = first + count - o < kLanes ? first + count - o : kLanes;
    Vector value[Batch];
    dots_of_rows<Batch, S>(s + o * s_row, s_row, rows, rank, dense, in_row, value);
    const int lane = static_cast<int>(o % kColumnStep);
    for (int64_t j = 0; j < rank; ++j) {
      const Flips flipped = flips(sixteen_signs(signs + j * words, o - lane), lane);
      SKETCHLAYERS_UNROLL
      for (int b = 0; b < Batch; ++b) value[b] += flip(splat(signed_[b * in_row + j]), flipped);
    }
    for (int b = 0; b < Batch; ++b) {
      alignas(Vector) float lanes[kLanes];
      store(lanes, value[b]);
      for (int64_t i = 0; i < rows; ++i) {
        y[b * y_row + o + i] = lanes[i] + (bias ? bias[o + i] : 0.0f);
      }
    }
  }
}

template <typename S>
void combine_vectors(const S* s, int64_t s_row, const int32_t* signs, int64_t words, int64_t first,
                     int64_t count, int64_t rank, const float* dense, const float* signed_,
                     int64_t in_row, int64_t batch, const float* bias, float* y, int64_t y_row) {
  const auto run = batch == 1   ? combine_batch<1, S>
                   : batch == 2 ? combine_batch<2, S>
                   : batch == 3 ? combine_batch<3, S>
                                : combine_batch<4, S>;
  run(s, s_row, signs, words, first, count, rank, dense, signed_, in_row, bias, y, y_row);
}

}  // namespace

constexpr VectorKernels kKernels = {kTakesMasks,
                                    product,
                                    depthwise,
                                    depthwise_pixels,
                                    copy_rows,
                                    transpose,
                                    interleave,
                                    separate,
                                    sign_pairs_of_words,
                                    sign_pairs_of_bits,
                                    to_bfloat16,
                                    round_rows,
                                    gather_features,
                                    expand_signs,
                                    sketch_vectors<float>,
                                    sketch_vectors<uint16_t>,
                                    combine_vectors<float>,
                                    combine_vectors<uint16_t>};

}  // namespace sketchlayers::cpu::SKETCHLAYERS_VECTOR_NAMESPACE
