// Blocks of CUDA threads run on the host: warp after warp, phase after phase.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <vector>

#include "cuda_emulation.h"

namespace sketchlayers::cuda {

// How the emulation resolves what a device leaves open. A result that depends on it is a race.
struct Schedule {
  bool backwards;    // the last warp goes first
  bool late_copies;  // asynchronous copies happen when they are waited for
};
constexpr Schedule kSchedules[] = {{false, false}, {true, true}, {false, true}};

template <typename Warp>
class HostBlock {
 public:
  // Shared memory starts as NaNs, so that what is used without having been written is seen; its
  // size is exact, so that the address sanitizer sees what lies beyond.
  HostBlock(int warps, size_t shared_bytes, Schedule schedule)
      : warps_(static_cast<size_t>(warps)),
        units_(new Unit[(shared_bytes + sizeof(Unit) - 1) / sizeof(Unit)]),
        schedule_(schedule) {
    std::memset(static_cast<void*>(units_.get()), 0xFF, shared_bytes);
    emulation::Copies::get() = emulation::Copies{};
    emulation::Copies::get().late = schedule.late_copies;
  }

  unsigned char* shared() { return reinterpret_cast<unsigned char*>(units_.get()); }

  template <typename Phase>
  void each_warp(const Phase& phase) {
    const int warps = static_cast<int>(warps_.size());
    const int groups = emulation::Copies::get().group;
    for (int i = 0; i < warps; ++i) {
      const int warp = schedule_.backwards ? warps - 1 - i : i;
      // Every thread counts its own groups of copies; all count alike.
      emulation::Copies::get().group = groups;
      phase(warp, warps_[static_cast<size_t>(warp)]);
    }
  }
  void synchronize() {}

 private:
  std::vector<Warp> warps_;
  std::unique_ptr<Unit[]> units_;
  Schedule schedule_;
};

}  // namespace sketchlayers::cuda
