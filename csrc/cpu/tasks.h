// Independent tasks on all threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

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

}  // namespace sketchlayers::cpu
