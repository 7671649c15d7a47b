// A seed as floating-point zeros and ones, which averages, interpolations and casts of a network
// leave alone: see python/sketchlayers/nn/_seed_bits.py. Part of the file format.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

namespace sketchlayers::nn {

// 64 bits of the seed and 32 of a checksum over it and the layer's configuration, least significant
// first.
constexpr int64_t kSeedEntries = 96;

// The entries of a seed of a layer of this configuration, float32 on the CPU.
at::Tensor seed_entries(int64_t seed, const std::string& configuration);

// The seed of these entries. Raises c10::ValueError if they are those of no seed, or of a layer of
// another configuration.
int64_t seed_of(const char* owner, const at::Tensor& entries, const std::string& configuration);

}  // namespace sketchlayers::nn
