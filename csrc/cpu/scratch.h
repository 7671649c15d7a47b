// Memory of a thread for what lives no longer than a task: taken anew from the system, a page at a
// time, it would cost more than a small layer.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace sketchlayers::cpu {

class Scratch {
 public:
  // Room for `floats`, aligned to cache lines, until the next call; contents are undefined.
  static float* get(int64_t floats) {
    thread_local Scratch scratch;
    if (floats > scratch.size_) {
      scratch.memory_.reset();
      scratch.size_ = 0;
      scratch.memory_.reset(static_cast<float*>(
          ::operator new(static_cast<size_t>(floats) * sizeof(float), kAlignment)));
      scratch.size_ = floats;
    }
    return scratch.memory_.get();
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Delete {
    void operator()(float* memory) const { ::operator delete(memory, kAlignment); }
  };
  std::unique_ptr<float, Delete> memory_;
  int64_t size_ = 0;
};

}  // namespace sketchlayers::cpu
