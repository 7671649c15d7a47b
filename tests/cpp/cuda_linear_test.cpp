// The kernels for a few vectors, run on the host.
#include <gtest/gtest.h>

#include "cuda/narrow_linear.h"
#include "cuda_block.h"
#include "cuda_values.h"

namespace sketchlayers::cuda {
namespace {

struct Layer {
  int vectors = 1;
  int64_t channels = 40;
  int64_t outputs = 70;
  int rank = 11;
  bool bias = true;
};

constexpr double kInnerScale = 0.5;
constexpr double kOuterScale = 0.25;

template <typename T>
struct Operands {
  explicit Operands(const Layer& layer)
      : input(random_values<T>(layer.vectors * layer.channels)),
        s1(random_values<T>(layer.rank * layer.channels)),
        s2(random_values<T>(layer.outputs * layer.rank)),
        bias(random_values<T>(layer.outputs)),
        u1(random_words(layer.rank * sign_words(layer.outputs))),
        u2(random_words(layer.rank * sign_words(layer.channels))) {}

  std::vector<T> input, s1, s2, bias;
  std::vector<int32_t> u1, u2;
};

template <typename T>
std::vector<double> expected_output(const Layer& layer, const Operands<T>& operands) {
  std::vector<double> output;
  for (int v = 0; v < layer.vectors; ++v) {
    std::vector<double> first, second;
    for (int r = 0; r < layer.rank; ++r) {
      double sums[2] = {0, 0};
      for (int64_t c = 0; c < layer.channels; ++c) {
        const double x = static_cast<float>(operands.input[v * layer.channels + c]);
        sums[0] += static_cast<float>(operands.s1[r * layer.channels + c]) * x;
        sums[1] += sign_at<double>(operands.u2.data() + r * sign_words(layer.channels), c) * x;
      }
      first.push_back(sums[0]);
      second.push_back(sums[1]);
    }
    for (int64_t o = 0; o < layer.outputs; ++o) {
      double sum = 0;
      for (int r = 0; r < layer.rank; ++r) {
        sum += sign_at<double>(operands.u1.data() + r * sign_words(layer.outputs), o) * first[r] +
               static_cast<double>(static_cast<float>(operands.s2[o * layer.rank + r])) * second[r];
      }
      const double addend = layer.bias ? static_cast<float>(operands.bias[o]) : 0.0f;
      output.push_back(kInnerScale * kOuterScale * sum + addend);
    }
  }
  return output;
}

template <typename Body, typename Traits>
void run_blocks(const NarrowLinearParams& params, int64_t blocks, int64_t shared,
                Schedule schedule) {
  for (int64_t block = 0; block < blocks; ++block) {
    for (int v = 0; v * Traits::kVectors < params.vectors; ++v) {
      HostBlock<typename Body::Warp> host(Traits::kWarps, static_cast<size_t>(shared), schedule);
      Body(params, host.shared(), block, v).run(host);
    }
  }
}

template <typename T, int kVectors>
void check_layer(const Layer& layer) {
  using Traits = NarrowLinearTraits<T, kVectors>;
  const Operands<T> operands(layer);
  const auto expected = expected_output(layer, operands);
  for (const Schedule schedule : kSchedules) {
    std::vector<float> inner(static_cast<size_t>(2 * layer.vectors * layer.rank));
    std::vector<T> output(expected.size());
    NarrowLinearParams params{};
    params.input = operands.input.data();
    params.s1 = operands.s1.data();
    params.s2 = operands.s2.data();
    params.u1 = operands.u1.data();
    params.u2 = operands.u2.data();
    params.bias = layer.bias ? operands.bias.data() : nullptr;
    params.inner = inner.data();
    params.output = output.data();
    params.channels = layer.channels;
    params.outputs = layer.outputs;
    params.channel_words = sign_words(layer.channels);
    params.output_words = sign_words(layer.outputs);
    params.vectors = layer.vectors;
    params.rank = layer.rank;
    params.inner_scale = static_cast<float>(kInnerScale);
    params.outer_scale = static_cast<float>(kOuterScale);
    params.row_units = layer.channels % Traits::kPerUnit == 0;
    params.s2_units = layer.rank % 2 == 0;
    run_blocks<NarrowInner<Traits>, Traits>(params,
                                            (layer.rank + Traits::kRows - 1) / Traits::kRows,
                                            NarrowInner<Traits>::shared_bytes(), schedule);
    run_blocks<NarrowOuter<Traits>, Traits>(
        params, (layer.outputs + Traits::kOutputs - 1) / Traits::kOutputs,
        NarrowOuter<Traits>::shared_bytes(layer.rank), schedule);
    expect_close(output, expected, tolerance<T>());
  }
}

template <typename T>
void check_vectors(Layer layer) {
  layer.vectors = 1;
  check_layer<T, 1>(layer);
  layer.vectors = 2;
  check_layer<T, 2>(layer);
  layer.vectors = 3;
  check_layer<T, 4>(layer);
  layer.vectors = 13;
  check_layer<T, 8>(layer);
}

TEST(NarrowLinear, EveryTypeAndNumberOfVectors) {
  check_vectors<BFloat16>({});
  check_vectors<Half>({});
  check_vectors<float>({});
}

TEST(NarrowLinear, OddSizes) {
  Layer layer;
  layer.channels = 37;
  layer.outputs = 33;
  layer.bias = false;
  for (const int rank : {1, 2, 7, 64}) {
    layer.rank = rank;
    check_vectors<BFloat16>(layer);
    check_vectors<float>(layer);
  }
  layer.channels = layer.outputs = 1;
  check_vectors<Half>(layer);
}

TEST(NarrowLinear, LongRows) {
  Layer layer;
  layer.channels = 2500;
  layer.outputs = 300;
  layer.rank = 100;
  check_vectors<BFloat16>(layer);
  layer.channels = 2501;
  check_vectors<float>(layer);
}

}  // namespace
}  // namespace sketchlayers::cuda
