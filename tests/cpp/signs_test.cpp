// The signs are a file format: a checkpoint stores only the seed.
#include "signs.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <string>

#include "ops/sign_matrix.h"

namespace sketchlayers {
namespace {

std::string last_row(const at::Tensor& packed, int64_t columns) {
  const at::Tensor row = packed[-1];
  const int32_t* words = row.data_ptr<int32_t>();
  std::string text;
  for (int64_t column = 0; column < columns; ++column) {
    text += sign_at<int>(words, column) > 0 ? '+' : '-';
  }
  return text;
}

std::string signs_of_row(int64_t seed, int64_t matrix, int64_t row, int64_t columns) {
  return last_row(sign_matrix(seed, matrix, row + 1, columns), columns);
}

TEST(Signs, FormatIsFixed) {
  EXPECT_EQ(signs_of_row(0, 0, 0, 24), "-+-++-----++---++---++--");
  EXPECT_EQ(signs_of_row(2018, 1, 3, 24), "+++--+-+++++-++--+++-+-+");
  EXPECT_EQ(signs_of_row((int64_t{1} << 40) + 7, 3, 2, 24), "--+-++-+-+++++-+--+--+--");
}

TEST(Signs, FormatOfHadamardSignsIsFixed) {
  EXPECT_EQ(last_row(hadamard_signs(0, 0, 3, 24), 24), "+-++-+-+-+++++++-+++-+--");
  EXPECT_EQ(last_row(hadamard_signs(2018, 1, 6, 24), 24), "--++-+++---++-++-+++++-+");
}

TEST(Signs, RowsArePaddedToBlocksOf128) {
  EXPECT_EQ(sign_words<int64_t>(1), 4);
  EXPECT_EQ(sign_words<int64_t>(128), 4);
  EXPECT_EQ(sign_words<int64_t>(129), 8);
  EXPECT_EQ(sign_matrix(7, 0, 3, 129).sizes(), (std::vector<int64_t>{3, 8}));
}

TEST(Signs, AreAFunctionOfTheirPlaceAlone) {
  const at::Tensor small = unpack_signs(sign_matrix(5, 2, 3, 40), 40);
  const at::Tensor large = unpack_signs(sign_matrix(5, 2, 9, 300), 300);
  EXPECT_TRUE(at::equal(small, large.slice(0, 0, 3).slice(1, 0, 40)));
  EXPECT_FALSE(at::equal(small, unpack_signs(sign_matrix(6, 2, 3, 40), 40)));
}

TEST(Signs, UnpackGivesEveryColumn) {
  const at::Tensor packed = sign_matrix(11, 1, 4, 150);
  const at::Tensor signs = unpack_signs(packed, 150, 0, at::kDouble);
  ASSERT_EQ(signs.sizes(), (std::vector<int64_t>{4, 150}));
  for (int64_t row = 0; row < 4; ++row) {
    for (int64_t column = 0; column < 150; ++column) {
      EXPECT_EQ(signs[row][column].item<double>(),
                sign_at<double>(packed[row].data_ptr<int32_t>(), column));
    }
  }
}

TEST(Signs, WrongSizesRaise) { EXPECT_THROW(sign_matrix(0, 0, -1, 8), c10::Error); }

}  // namespace
}  // namespace sketchlayers
