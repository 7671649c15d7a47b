// Random operands for the tests of CUDA's kernels, and how results are compared.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <type_traits>
#include <vector>

namespace sketchlayers::cuda {

using BFloat16 = c10::BFloat16;
using Half = c10::Half;

inline std::mt19937& generator() {
  static std::mt19937 engine(1);
  return engine;
}

template <typename T>
std::vector<T> random_values(int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<T> values(static_cast<size_t>(count));
  for (T& value : values) value = static_cast<T>(normal(generator()));
  return values;
}

inline std::vector<int32_t> random_words(int64_t count) {
  std::vector<int32_t> words(static_cast<size_t>(count));
  for (int32_t& word : words) word = static_cast<int32_t>(generator()());
  return words;
}

// The error that rounding between two products and at the end may make, relative to the norm.
template <typename T>
double tolerance() {
  return std::is_same_v<T, BFloat16> ? 6e-3 : 1e-3;
}

template <typename T>
void expect_close(const std::vector<T>& actual, const std::vector<double>& expected,
                  double allowed) {
  ASSERT_EQ(actual.size(), expected.size());
  double error = 0;
  double norm = 0;
  double largest = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double difference = static_cast<double>(static_cast<float>(actual[i])) - expected[i];
    ASSERT_TRUE(std::isfinite(difference)) << "at " << i;
    error += difference * difference;
    norm += expected[i] * expected[i];
    largest = std::max(largest, std::abs(difference));
  }
  EXPECT_LE(std::sqrt(error), allowed * std::sqrt(norm));
  EXPECT_LE(largest, 8 * allowed * std::sqrt(norm / static_cast<double>(actual.size())));
}

}  // namespace sketchlayers::cuda
