// The generator against the known answers that its authors publish with Random123 (kat_vectors).
#include "philox.h"

#include <gtest/gtest.h>

namespace sketchlayers {
namespace {

void expect_words(const PhiloxBlock& block, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  EXPECT_EQ(block.word[0], a);
  EXPECT_EQ(block.word[1], b);
  EXPECT_EQ(block.word[2], c);
  EXPECT_EQ(block.word[3], d);
}

TEST(Philox, Zeros) {
  expect_words(philox4x32({{0, 0, 0, 0}}, 0), 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8);
}

TEST(Philox, Ones) {
  constexpr uint32_t kOnes = 0xffffffff;
  expect_words(philox4x32({{kOnes, kOnes, kOnes, kOnes}}, 0xffffffffffffffff), 0x408f276d,
               0x41c83b0e, 0xa20bc7c6, 0x6d5451fd);
}

TEST(Philox, DigitsOfPi) {
  expect_words(philox4x32({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0x299f31d0a4093822),
               0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1);
}

}  // namespace
}  // namespace sketchlayers
