#include "plan/chain_plan.h"

namespace sketchlayers {
namespace {

// With so many multiply-adds the libraries behind PyTorch's convolutions are 5 to 20 % faster than
// one pass (an Intel Xeon with AVX-512, two threads, 64 to 512 channels) in channels_last, where
// the core mixes many features, and with images of so few pixels that a good part of every vector
// is left empty. With a core that does not stay in the second-level cache they are in either
// format.
constexpr double kMany = 2e8;
constexpr double kFewPixels = 64;
constexpr double kLargeCore = 1 << 16;  // entries
constexpr double kHugeCore = 1 << 18;

}  // namespace

ChainPlan plan_chain(const ChainProblem& problem) {
  if (problem.processor == Processor::kCuda) {
    return {false, "the pass over tiles is for CPUs"};
  }
  if (problem.precision == Precision::kFloat64) {
    return {false, "float64 has no kernel of its own"};
  }
  if (problem.training) {
    return {false, "with gradients PyTorch's convolutions are faster, forward and backward"};
  }
  if (problem.precision == Precision::kBFloat16) {
    return {false, "processors compute with bfloat16, and the pass over tiles in float32"};
  }
  if (!problem.factors && problem.channels_last) {
    return {false, "without 1x1 factors PyTorch's convolutions are faster in channels_last"};
  }
  const bool is_large = problem.multiply_adds.value_or(0) >= kMany;
  const bool is_narrow = problem.pixels.value_or(kFewPixels) < kFewPixels;
  const double core = problem.core;
  const bool is_slow = problem.channels_last
                           ? is_large || core > kHugeCore || (core > kLargeCore && is_narrow)
                           : is_large && core > (problem.factors ? kHugeCore : kLargeCore);
  if (!problem.depthwise && is_slow) {
    return {false, "large products of many features are faster in PyTorch's convolutions"};
  }
  if (is_large && is_narrow) {
    return {false, "large products of small images are faster in PyTorch's convolutions"};
  }
  return {true, "no map of features is written to memory"};
}

}  // namespace sketchlayers
