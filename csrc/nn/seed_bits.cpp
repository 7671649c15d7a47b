#include "nn/seed_bits.h"

#include <ATen/ops/empty.h>

#include <cmath>

namespace sketchlayers::nn {
namespace {

constexpr int64_t kSeedBits = 64;
constexpr double kMostRounding = 1.0 / 16;

// CRC-32 as zip and zlib have it.
uint32_t checksum(int64_t seed, const std::string& configuration) {
  uint32_t crc = ~uint32_t{0};
  for (const char letter : "seed=" + std::to_string(seed) + ";" + configuration) {
    crc ^= static_cast<unsigned char>(letter);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0xedb88320U : 0U);
  }
  return ~crc;
}

}  // namespace

at::Tensor seed_entries(int64_t seed, const std::string& configuration) {
  const uint64_t low = static_cast<uint64_t>(seed), high = checksum(seed, configuration);
  at::Tensor entries = at::empty({kSeedEntries}, at::kFloat);
  float* values = entries.mutable_data_ptr<float>();
  for (int64_t i = 0; i < kSeedEntries; ++i) {
    const uint64_t bits = i < kSeedBits ? low >> i : high >> (i - kSeedBits);
    values[i] = static_cast<float>(bits & 1);
  }
  return entries;
}

int64_t seed_of(const char* owner, const at::Tensor& entries, const std::string& configuration) {
  const at::Tensor on_cpu = entries.detach().to(at::kCPU, at::kDouble).contiguous();
  const double* values = on_cpu.const_data_ptr<double>();
  uint64_t low = 0;
  uint32_t high = 0;
  int64_t off = 0;
  for (int64_t i = 0; i < kSeedEntries; ++i) {
    const double bit = std::nearbyint(values[i]);
    if (!((bit == 0 || bit == 1) && std::abs(values[i] - bit) <= kMostRounding)) {
      ++off;
    } else if (bit == 1 && i < kSeedBits) {
      low |= uint64_t{1} << i;
    } else if (bit == 1) {
      high |= uint32_t{1} << (i - kSeedBits);
    }
  }
  TORCH_CHECK_VALUE(off == 0, owner, ": seed_bits must hold zeros and ones (got ", off, " of ",
                    kSeedEntries,
                    " entries that are neither, as a mean of layers with different seeds has them: "
                    "only layers with the same seed can be averaged, such as copies of one "
                    "network)");
  const auto seed = static_cast<int64_t>(low);
  TORCH_CHECK_VALUE(seed >= 0 && high == checksum(seed, configuration), owner,
                    ": seed_bits must be the seed of a layer of this configuration (its checksum "
                    "is that of another one, or the entries were overwritten; this layer has ",
                    configuration, ")");
  return seed;
}

}  // namespace sketchlayers::nn
