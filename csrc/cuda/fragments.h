// The steps that a warp takes together: matrix fragments, their products and copies to shared
// memory. On the device each is an instruction or two; on the host the tests emulate them for the
// 32 lanes of a warp (tests/cpp/cuda_emulation.h), so that whole kernels run without a GPU.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "philox.h"  // SKETCHLAYERS_HOST_DEVICE

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define SKETCHLAYERS_INLINE __host__ __device__ __forceinline__
#define SKETCHLAYERS_PRAGMA(text) _Pragma(#text)
#define SKETCHLAYERS_UNROLL SKETCHLAYERS_PRAGMA(unroll)
#define SKETCHLAYERS_UNROLL_BY(count) SKETCHLAYERS_PRAGMA(unroll count)
#else
#define SKETCHLAYERS_INLINE inline
#define SKETCHLAYERS_UNROLL
#define SKETCHLAYERS_UNROLL_BY(count)
#endif

namespace sketchlayers::cuda {

constexpr int kWarpSize = 32;
constexpr int kUnitBytes = 16;  // the widest access of a thread, and a row of an 8x8 tile

// nvcc also compiles for the host what only the device runs: there nothing is emulated.
#if defined(__CUDACC__)
constexpr int kLanesHere = 1;
#else
constexpr int kLanesHere = kWarpSize;
#endif

// Calls body(lane): on the device once, on the host for each lane of the warp.
template <typename Body>
SKETCHLAYERS_INLINE void for_each_lane(const Body& body) {
#if defined(__CUDA_ARCH__)
  body(static_cast<int>(threadIdx.x) % kWarpSize);
#else
  for (int lane = 0; lane < kLanesHere; ++lane) body(lane);
#endif
}

// A variable of which every lane has one.
template <typename T>
class PerLane {
 public:
  SKETCHLAYERS_INLINE T& operator[](int lane) { return value_[kLanesHere == 1 ? 0 : lane]; }
  SKETCHLAYERS_INLINE const T& operator[](int lane) const {
    return value_[kLanesHere == 1 ? 0 : lane];
  }

 private:
  T value_[kLanesHere];
};

// 16 rows and 2 units of columns of the left matrix, as four registers.
struct LeftFragment {
  PerLane<uint32_t> reg[4];
};
// 2 units of rows and 8 columns of the right matrix.
struct RightFragment {
  PerLane<uint32_t> reg[2];
};
// 16 x 8 sums: lane l holds rows l/4 (0, 1) and l/4 + 8 (2, 3), columns 2 (l%4) and 2 (l%4) + 1.
struct Sums {
  PerLane<float> value[4];
};

SKETCHLAYERS_INLINE void clear(Sums& sums) {
  for_each_lane([&](int lane) {
    SKETCHLAYERS_UNROLL
    for (int i = 0; i < 4; ++i) sums.value[i][lane] = 0.0f;
  });
}

// 16 bytes, of which a thread reads or writes all at once.
struct alignas(kUnitBytes) Unit {
  uint32_t word[4];
};

template <typename To, typename From>
SKETCHLAYERS_INLINE To bit_copy(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bits are copied between types of one size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// What the types of elements have in their own way. A step of a product takes 2 units of elements.
// TensorFloat-32 elements are float32 in memory.
template <typename T>
struct Element;

template <typename T>
struct HalfElement {
  static constexpr int kPerUnit = 8;
  static constexpr int kStep = 16;
  // The column of a left fragment's step in which sums that are passed on as registers lie.
  static constexpr int kTilesPerStep = 2;

  static SKETCHLAYERS_INLINE uint32_t prepare(uint32_t bits) { return bits; }

  // Two bits, the lower first, as +1 or -1.
  static SKETCHLAYERS_INLINE uint32_t signs(uint32_t bits, uint32_t one) {
    return (one | one << 16) ^ ((bits & 1u) << 15) ^ ((bits & 2u) << 30);
  }
};

template <>
struct Element<c10::BFloat16> : HalfElement<c10::BFloat16> {
  static constexpr uint32_t kOne = 0x3F80;

  static SKETCHLAYERS_INLINE uint32_t pack(float low, float high) {
#if defined(__CUDA_ARCH__)
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return bit_copy<uint32_t>(both);
#else
    return c10::BFloat16(low).x | static_cast<uint32_t>(c10::BFloat16(high).x) << 16;
#endif
  }
};

template <>
struct Element<c10::Half> : HalfElement<c10::Half> {
  static constexpr uint32_t kOne = 0x3C00;

  static SKETCHLAYERS_INLINE uint32_t pack(float low, float high) {
#if defined(__CUDA_ARCH__)
    const __half2 both = __floats2half2_rn(low, high);
    return bit_copy<uint32_t>(both);
#else
    return c10::Half(low).x | static_cast<uint32_t>(c10::Half(high).x) << 16;
#endif
  }
};

template <>
struct Element<float> {
  static constexpr int kPerUnit = 4;
  static constexpr int kStep = 8;
  static constexpr int kTilesPerStep = 1;
  static constexpr uint32_t kOne = 0x3F800000;

  // Rounds to the 10 bits of mantissa that the product reads; it would cut the others off.
  static SKETCHLAYERS_INLINE uint32_t prepare(uint32_t bits) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    uint32_t rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
    return rounded;
#else
    const bool finite = (bits & 0x7F800000u) != 0x7F800000u;
    return finite ? (bits + 0x1000u) & ~0x1FFFu : bits;
#endif
  }
};

// The right fragment of signs, from a word of 32 bits along the rows; `first` is the place in the
// word of the step's first row. `in_pairs`: the rows are in the order of sums that were passed on
// as a left fragment (see `pass_on`).
template <typename T>
SKETCHLAYERS_INLINE void sign_fragment(RightFragment& right, const PerLane<uint32_t>& words,
                                       int first, bool in_pairs) {
  for_each_lane([&](int lane) {
    const int quad = lane % 4;
    if constexpr (Element<T>::kStep == 16) {
      const uint32_t bits = words[lane] >> (first + 2 * quad);
      right.reg[0][lane] = Element<T>::signs(bits, Element<T>::kOne);
      right.reg[1][lane] = Element<T>::signs(bits >> 8, Element<T>::kOne);
    } else {
      const uint32_t bits = words[lane] >> (first + (in_pairs ? 2 * quad : quad));
      right.reg[0][lane] = Element<T>::kOne ^ (bits & 1u) << 31;
      right.reg[1][lane] = Element<T>::kOne ^ (bits >> (in_pairs ? 1 : 4) & 1u) << 31;
    }
  });
}

// Scaled sums as the left fragment of the next product. The columns become a step's rows: as they
// are for half types, and for float32 in the order 0 2 4 6 1 3 5 7.
template <typename T>
SKETCHLAYERS_INLINE void pass_on(LeftFragment& left, const Sums* tiles, float scale) {
  for_each_lane([&](int lane) {
    if constexpr (Element<T>::kStep == 16) {
      SKETCHLAYERS_UNROLL
      for (int i = 0; i < 4; ++i) {
        const Sums& tile = tiles[i / 2];
        left.reg[i][lane] = Element<T>::pack(tile.value[2 * (i % 2)][lane] * scale,
                                             tile.value[2 * (i % 2) + 1][lane] * scale);
      }
    } else {
      constexpr int kOrder[4] = {0, 2, 1, 3};
      SKETCHLAYERS_UNROLL
      for (int i = 0; i < 4; ++i) {
        left.reg[i][lane] =
            Element<T>::prepare(bit_copy<uint32_t>(tiles[0].value[kOrder[i]][lane] * scale));
      }
    }
  });
}

// What a register of a right fragment holds: `row` is that of its first element in the step.
template <typename T>
SKETCHLAYERS_INLINE int right_row(int lane, int reg) {
  return Element<T>::kStep == 16 ? 8 * reg + 2 * (lane % 4) : 4 * reg + lane % 4;
}

// ------------------------------------------------------------------------------ instructions

// Four 8x8 tiles of 2-byte elements (or 8x4 of 4 bytes); lane l gives the row l%8 of tile l/8.
SKETCHLAYERS_INLINE void load_left(LeftFragment& left, const PerLane<const void*>& rows);

// The same with every tile transposed, for elements of 2 bytes: columns in memory become rows.
SKETCHLAYERS_INLINE void load_transposed(PerLane<uint32_t> (&reg)[4],
                                         const PerLane<const void*>& rows);

// sums += left right
template <typename T>
SKETCHLAYERS_INLINE void multiply(Sums& sums, const LeftFragment& left, const RightFragment& right);

// The sum over the lanes, in every lane, added up in a fixed order.
SKETCHLAYERS_INLINE void sum_over_lanes(PerLane<float>& value);

// 16 bytes from global to shared memory while the thread goes on; zeros where `from` is null.
SKETCHLAYERS_INLINE void copy_async(void* to, const void* from);

// Ends a group of copies; `wait_for_copies<n>` waits until at most the last n groups are under way.
SKETCHLAYERS_INLINE void end_copies();
template <int kGroupsLeft>
SKETCHLAYERS_INLINE void wait_for_copies();

// The row and the unit of a left fragment that lane `lane` addresses for `load_left`.
SKETCHLAYERS_INLINE int left_row(int lane) { return lane % 16; }
SKETCHLAYERS_INLINE int left_unit(int lane) { return lane / 16; }

// The row (of 16) and the unit (of 2) that lane `lane` addresses for `load_transposed`, for a left
// fragment and for two neighbouring right fragments.
SKETCHLAYERS_INLINE int transposed_left_row(int lane) { return lane % 8 + lane / 16 * 8; }
SKETCHLAYERS_INLINE int transposed_left_unit(int lane) { return lane / 8 % 2; }
SKETCHLAYERS_INLINE int transposed_right_row(int lane) { return lane % 16; }
SKETCHLAYERS_INLINE int transposed_right_unit(int lane) { return lane / 16; }

// The instructions need all lanes of a warp together; after branches that lanes take alone this
// brings them together again.
SKETCHLAYERS_INLINE void synchronize_warp() {
#if defined(__CUDA_ARCH__)
  __syncwarp();
#endif
}

#if defined(__CUDACC__)
SKETCHLAYERS_INLINE void load_left(LeftFragment& left, const PerLane<const void*>& rows) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 750
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(rows[0]));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(left.reg[0][0]), "=r"(left.reg[1][0]), "=r"(left.reg[2][0]),
                 "=r"(left.reg[3][0])
               : "r"(address));
#endif
}

SKETCHLAYERS_INLINE void load_transposed(PerLane<uint32_t> (&reg)[4],
                                         const PerLane<const void*>& rows) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 750
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(rows[0]));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(reg[0][0]), "=r"(reg[1][0]), "=r"(reg[2][0]), "=r"(reg[3][0])
               : "r"(address));
#endif
}

template <typename T>
SKETCHLAYERS_INLINE void multiply(Sums& sums, const LeftFragment& left,
                                  const RightFragment& right) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define SKETCHLAYERS_MMA(shape_and_types)                                                \
  asm volatile("mma.sync.aligned." shape_and_types                                       \
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"        \
               : "+f"(sums.value[0][0]), "+f"(sums.value[1][0]), "+f"(sums.value[2][0]), \
                 "+f"(sums.value[3][0])                                                  \
               : "r"(left.reg[0][0]), "r"(left.reg[1][0]), "r"(left.reg[2][0]),          \
                 "r"(left.reg[3][0]), "r"(right.reg[0][0]), "r"(right.reg[1][0]))
  if constexpr (std::is_same_v<T, c10::BFloat16>) {
    SKETCHLAYERS_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
  } else if constexpr (std::is_same_v<T, c10::Half>) {
    SKETCHLAYERS_MMA("m16n8k16.row.col.f32.f16.f16.f32");
  } else {
    SKETCHLAYERS_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
  }
#undef SKETCHLAYERS_MMA
#elif defined(__CUDA_ARCH__)
  __trap();  // never launched: such devices take the path composed of ATen's operations
#endif
}

SKETCHLAYERS_INLINE void sum_over_lanes(PerLane<float>& value) {
#if defined(__CUDA_ARCH__)
  SKETCHLAYERS_UNROLL
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    value[0] += __shfl_xor_sync(0xFFFFFFFFu, value[0], distance);
  }
#endif
}

SKETCHLAYERS_INLINE void copy_async(void* to, const void* from) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  if (from != nullptr) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
  } else {
    *static_cast<Unit*>(to) = Unit{};
  }
#endif
}

SKETCHLAYERS_INLINE void end_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int kGroupsLeft>
SKETCHLAYERS_INLINE void wait_for_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
#endif
}
#endif

// ------------------------------------------------------------------------------ blocks

// Works through parts that are copied to shared memory, the next one while one is multiplied. The
// first part's copies must be under way.
template <typename Warp, typename Block, typename Load, typename Multiply>
SKETCHLAYERS_INLINE void pipeline(Block& block, int count, const Load& load,
                                  const Multiply& multiply) {
  for (int i = 0; i < count; ++i) {
    block.each_warp([&](int warp, Warp&) {
      if (i + 1 < count) {
        load(warp, i + 1);
        wait_for_copies<1>();
      } else {
        wait_for_copies<0>();
      }
    });
    block.synchronize();
    block.each_warp([&](int warp, Warp& state) { multiply(warp, state, i); });
    block.synchronize();
  }
}

#if defined(__CUDACC__)
// A thread's view of its block: `Warp` is what a warp remembers from phase to phase.
template <typename Warp>
class DeviceBlock {
 public:
  template <typename Phase>
  __device__ __forceinline__ void each_warp(const Phase& phase) {
    phase(static_cast<int>(threadIdx.x) / kWarpSize, warp_);
  }
  __device__ __forceinline__ void synchronize() { __syncthreads(); }

 private:
  Warp warp_;
};
#endif

}  // namespace sketchlayers::cuda
