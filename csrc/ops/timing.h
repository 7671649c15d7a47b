// Times of calls, side by side.
#pragma once

#include <array>
#include <cstddef>
#include <functional>
#include <vector>

namespace sketchlayers {

using Step = std::function<void()>;

// Whether calls of operators on this thread compute anything now: not under a mode, as fake tensors
// have it, in a trace, or in one task of several.
bool may_time();

double seconds_of(const Step& step);
double median(std::vector<double> times);

// Medians of seconds, of rounds in which each step runs once, after one that warms up.
template <size_t N>
std::array<double, N> paired_times(const std::array<Step, N>& steps) {
  constexpr size_t kMostRounds = 9;
  constexpr double kSeconds = 0.03;  // after which no other round begins
  for (const Step& step : steps) step();
  std::array<std::vector<double>, N> times;
  double spent = 0;
  while (times[0].size() < kMostRounds && (spent < kSeconds || times[0].empty())) {
    for (size_t i = 0; i < N; ++i) {
      times[i].push_back(seconds_of(steps[i]));
      spent += times[i].back();
    }
  }
  std::array<double, N> medians;
  for (size_t i = 0; i < N; ++i) medians[i] = median(times[i]);
  return medians;
}

}  // namespace sketchlayers
