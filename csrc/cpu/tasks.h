// Independent tasks on all threads, and their memory.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <new>

namespace sketchlayers::cpu {

// Calls body(i) for i < count; a thread takes the next one as soon as it is free, since tasks
// differ in size and threads in speed. The result must not depend on who runs what. Work that
// takes no longer than waking the threads is `small`, and stays on this one.
template <typename Body>
void run_tasks(int64_t count, const Body& body, bool small = false) {
  const int64_t threads = small ? 1 : std::min<int64_t>(at::get_num_threads(), count);
  if (threads <= 1 || at::in_parallel_region()) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  std::atomic<int64_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < count; i = next++) body(i);
  });
}

// How many of `count` neighbours a task takes, where there are `others` such rows of neighbours and
// it pays to make them one after the other: all, unless threads would wait for the last ones.
inline int64_t run_length(int64_t count, int64_t others) {
  const int64_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  int64_t pieces = 1;
  while (pieces < count && others * pieces < 4 * threads && others * pieces % threads != 0) {
    ++pieces;
  }
  return (count + pieces - 1) / pieces;
}

// Memory of a thread for what lives no longer than a task: taken anew from the system, a page at a
// time, it would cost more than a small layer.
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
