// What the threads of the hash kernels do, run on the host.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "cuda/hashed_matrix.h"

namespace sketchlayers::cuda {
namespace {

HashedMatrix hashed_matrix(int64_t rows, int64_t columns) {
  return {rows, columns, (columns + kHashesPerBlock - 1) / kHashesPerBlock};
}

TEST(HashedMatrix, VisitsEveryEntryOnceWithItsHash) {
  constexpr uint64_t kSeed = 77;
  DeviceTables tables{};
  tables.taps = 3;
  const uint32_t first[] = {0, 10, 10}, buckets[] = {10, 5, 90};
  std::copy(first, first + 3, tables.first);
  std::copy(buckets, buckets + 3, tables.buckets);
  for (const int64_t columns : {3, 12, 33}) {
    const HashedMatrix matrix = hashed_matrix(4, columns);
    std::vector<int> visits(static_cast<size_t>(4 * columns));
    for (int64_t i = 0; i < matrix.rows * matrix.blocks; ++i) {
      matrix.visit(i, kSeed, tables, [&](int64_t place, int64_t value, bool negative) {
        ++visits[static_cast<size_t>(place)];
        const int64_t row = place / columns, column = place % columns;
        const PhiloxBlock block = hash_block(kSeed, static_cast<uint32_t>(row),
                                             static_cast<uint32_t>(column / kHashesPerBlock));
        const uint32_t hash = block.word[column % kHashesPerBlock];
        const int64_t tap = column % 3;
        EXPECT_EQ(value, first[tap] + ((uint64_t{hash >> 1} * buckets[tap]) >> 31));
        EXPECT_EQ(negative, (hash & 1u) == 1u);
      });
    }
    EXPECT_TRUE(std::all_of(visits.begin(), visits.end(), [](int count) { return count == 1; }));
  }
}

TEST(FixedPoint, SumsInAnyOrderWithoutOverflow) {
  constexpr int64_t kCount = 1 << 20;
  std::mt19937_64 generator(3);
  std::normal_distribution<double> normal;
  for (const double size : {1e-38, 1e-3, 1.0, 3e38}) {
    std::vector<float> numbers(kCount);
    for (float& number : numbers) {
      number = static_cast<float>(std::clamp(normal(generator) / 5, -1.0, 1.0) * size);
    }
    double largest = 0, exact = 0;
    for (const float number : numbers) {
      largest = std::max(largest, std::abs(static_cast<double>(number)));
      exact += static_cast<double>(number);
    }
    const FixedPoint fixed = FixedPoint::of(largest, kCount);
    long long forward = 0, backward = 0, all_largest = 0;
    for (size_t i = 0; i < numbers.size(); ++i) {
      forward += fixed.units(static_cast<double>(numbers[i]));
      backward += fixed.units(static_cast<double>(numbers[numbers.size() - 1 - i]));
      all_largest += fixed.units(largest);
    }
    EXPECT_EQ(forward, backward);
    EXPECT_NEAR(fixed.number(forward) / largest, exact / largest, 1e-6);
    EXPECT_NEAR(fixed.number(all_largest) / (largest * kCount), 1, 1e-12);
  }
}

TEST(FixedPoint, ZerosAndOverflow) {
  EXPECT_EQ(FixedPoint::of(0, 10).number(FixedPoint::of(0, 10).units(0)), 0);
  const double infinity = std::numeric_limits<double>::infinity();
  EXPECT_TRUE(std::isnan(FixedPoint::of(infinity, 10).per_unit));
  EXPECT_TRUE(std::isnan(FixedPoint::of(std::nan(""), 10).per_unit));
}

}  // namespace
}  // namespace sketchlayers::cuda
