// The instructions of fragments.h on the host, for all 32 lanes, from PTX's description of them.
#pragma once

#include <cstring>
#include <vector>

#include "cuda/fragments.h"

namespace sketchlayers::cuda {
namespace emulation {

template <typename T>
inline float element(uint32_t reg, int i) {
  return static_cast<float>(T(static_cast<unsigned short>(reg >> (16 * i)), T::from_bits()));
}
template <>
inline float element<float>(uint32_t reg, int /*i*/) {
  return bit_copy<float>(reg & ~0x1FFFu);  // the product ignores the lowest 13 bits
}

// Asynchronous copies may happen at once or not before they are waited for; tests try both.
struct Copies {
  struct Copy {
    void* to;
    Unit value;
    int group;
  };
  bool late = false;
  int group = 0;
  std::vector<Copy> pending;

  static Copies& get() {
    static thread_local Copies copies;
    return copies;
  }
  void finish(int groups_left) {
    std::vector<Copy> later;
    for (const Copy& copy : pending) {
      if (copy.group < group - groups_left) {
        memcpy(copy.to, &copy.value, sizeof(Unit));
      } else {
        later.push_back(copy);
      }
    }
    pending.swap(later);
  }
};

}  // namespace emulation

// Fragments to matrices, as the PTX manual lays out mma.m16n8k16 and mma.m16n8k8.
template <typename T>
void multiply(Sums& sums, const LeftFragment& left, const RightFragment& right) {
  constexpr int kStep = Element<T>::kStep;
  constexpr int kPerRegister = kStep == 16 ? 2 : 1;
  float a[16][kStep];
  float b[kStep][8];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    for (int reg = 0; reg < 4; ++reg) {
      for (int i = 0; i < kPerRegister; ++i) {
        const int column = (lane % 4) * kPerRegister + i + (reg / 2) * kStep / 2;
        a[lane / 4 + 8 * (reg % 2)][column] = emulation::element<T>(left.reg[reg][lane], i);
      }
    }
    for (int reg = 0; reg < 2; ++reg) {
      for (int i = 0; i < kPerRegister; ++i) {
        const int row = (lane % 4) * kPerRegister + i + reg * kStep / 2;
        b[row][lane / 4] = emulation::element<T>(right.reg[reg][lane], i);
      }
    }
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    for (int i = 0; i < 4; ++i) {
      float& sum = sums.value[i][lane];
      for (int k = 0; k < kStep; ++k) {
        sum += a[lane / 4 + 8 * (i / 2)][k] * b[k][2 * (lane % 4) + i % 2];
      }
    }
  }
}

inline void load_left(LeftFragment& left, const PerLane<const void*>& rows) {
  for (int lane = 0; lane < kWarpSize; ++lane) {
    for (int tile = 0; tile < 4; ++tile) {
      const char* row = static_cast<const char*>(rows[8 * tile + lane / 4]);
      memcpy(&left.reg[tile][lane], row + 4 * (lane % 4), 4);
    }
  }
}

inline void load_transposed(PerLane<uint32_t> (&reg)[4], const PerLane<const void*>& rows) {
  for (int lane = 0; lane < kWarpSize; ++lane) {
    for (int tile = 0; tile < 4; ++tile) {
      uint32_t bits = 0;
      for (int i = 0; i < 2; ++i) {
        const char* row = static_cast<const char*>(rows[8 * tile + 2 * (lane % 4) + i]);
        uint16_t element;
        memcpy(&element, row + 2 * (lane / 4), sizeof(element));
        bits |= static_cast<uint32_t>(element) << (16 * i);
      }
      reg[tile][lane] = bits;
    }
  }
}

inline void sum_over_lanes(PerLane<float>& value) {
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    const PerLane<float> before = value;
    for (int lane = 0; lane < kWarpSize; ++lane) value[lane] += before[lane ^ distance];
  }
}

inline void copy_async(void* to, const void* from) {
  emulation::Copies& copies = emulation::Copies::get();
  Unit value{};
  if (from != nullptr) memcpy(&value, from, sizeof(Unit));
  if (copies.late) {
    copies.pending.push_back({to, value, copies.group});
  } else {
    memcpy(to, &value, sizeof(Unit));
  }
}

inline void end_copies() { ++emulation::Copies::get().group; }

template <int kGroupsLeft>
void wait_for_copies() {
  emulation::Copies::get().finish(kGroupsLeft);
}

}  // namespace sketchlayers::cuda
