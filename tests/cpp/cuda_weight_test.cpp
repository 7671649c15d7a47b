// The kernels that form the dense weight and its adjoint, run on the host.
#include <gtest/gtest.h>

#include "cuda/weight_problems.h"
#include "cuda_block.h"
#include "cuda_values.h"

namespace sketchlayers::cuda {
namespace {

struct Layer {
  WeightSizes sizes{1, 5, 70, 20, 9, true};
  bool frame = false;
  bool channels_last = false;
};

constexpr double kScale = 0.5;
constexpr double kU1Scale = 0.25;
constexpr double kU2Scale = 0.125;

template <typename T>
struct Operands {
  explicit Operands(const WeightSizes& sizes)
      : s1(random_values<T>(sizes.groups * sizes.rank * sizes.inputs())),
        s2(random_values<T>(sizes.groups * sizes.outputs * sizes.rank * sizes.positions)),
        grad(random_values<T>(sizes.groups * sizes.outputs * sizes.inputs())),
        u1(random_words(sizes.groups * sizes.rank * sign_words(sizes.outputs))),
        u2(random_words(sizes.groups * sizes.second_rank() * sign_words(sizes.columns()))),
        frame(random_words(sizes.groups * sizes.outputs * sign_words(sizes.inputs()))) {}

  std::vector<T> s1, s2, grad;
  std::vector<int32_t> u1, u2, frame;
};

SignRows sign_rows(const std::vector<int32_t>& words, int64_t rows, int64_t columns,
                   bool given = true) {
  return {given ? words.data() : nullptr, rows, sign_words(columns)};
}

template <typename T>
WeightView<T> view(T* data, const Layer& layer) {
  const WeightSizes& sizes = layer.sizes;
  if (layer.channels_last) return {data, sizes.inputs(), 1, sizes.channels, sizes.positions};
  return {data, sizes.inputs(), sizes.positions, 1, sizes.positions};
}

// Calls body(element of the weight, [(s1 element, sign of U1)], [(s2 element, sign of U2)], frame)
// for each element of the weight.
template <typename T, typename Body>
void for_each_weight(const Layer& layer, const Operands<T>& operands, const Body& body) {
  const WeightSizes& sizes = layer.sizes;
  const SignRows u1 = sign_rows(operands.u1, sizes.rank, sizes.outputs);
  const SignRows u2 = sign_rows(operands.u2, sizes.second_rank(), sizes.columns());
  const SignRows frame = sign_rows(operands.frame, sizes.outputs, sizes.inputs());
  for (int64_t g = 0; g < sizes.groups; ++g) {
    for (int64_t o = 0; o < sizes.outputs; ++o) {
      for (int64_t c = 0; c < sizes.channels; ++c) {
        for (int64_t p = 0; p < sizes.positions; ++p) {
          const int64_t n = c * sizes.positions + p;
          std::vector<std::pair<int64_t, double>> first, second;
          for (int64_t r = 0; r < sizes.rank; ++r) {
            first.emplace_back((g * sizes.rank + r) * sizes.inputs() + n, u1.at(g, r, o));
          }
          const int64_t s2_row = (g * sizes.outputs + o) * sizes.rank * sizes.positions;
          for (int64_t q = 0; q < sizes.second_rank(); ++q) {
            const int64_t s2 = s2_row + (sizes.mixes_space ? q : q * sizes.positions + p);
            second.emplace_back(s2, u2.at(g, q, sizes.mixes_space ? n : c));
          }
          const auto place = view<const T>(nullptr, layer).at(g * sizes.outputs + o, n) -
                             static_cast<const T*>(nullptr);
          body(place, first, second, layer.frame ? frame.at(g, o, n) : 1.0);
        }
      }
    }
  }
}

template <typename Problem>
void run(const Problem& problem, int64_t wanted_blocks, Schedule schedule) {
  Split split = split_depth(problem, wanted_blocks);
  std::vector<float> partial(
      static_cast<size_t>(split.parts * problem.batches * problem.rows * problem.columns),
      std::nanf(""));
  if (split.parts > 1) split.partial = partial.data();
  for (int64_t tile = 0; tile < tiles(problem); ++tile) {
    for (int64_t i = 0; i < split.parts * problem.batches; ++i) {
      HostBlock<typename DecodedGemm<Problem>::Warp> host(
          DecodedGemmTraits::kWarps, DecodedGemmTraits::kSharedBytes, schedule);
      DecodedGemm<Problem>(problem, split, reinterpret_cast<float*>(host.shared()), tile, i)
          .run(host);
    }
  }
  if (split.parts == 1) return;
  for (int64_t i = 0; i < problem.batches * problem.rows * problem.columns; ++i) {
    add_parts(problem, split, i);
  }
}

template <typename T>
void check_weight(const Layer& layer, const Operands<T>& operands, int64_t blocks,
                  Schedule schedule) {
  const WeightSizes& sizes = layer.sizes;
  std::vector<T> weight(operands.grad.size());
  WeightProblem<T> problem{};
  problem.set_sizes(sizes);
  problem.s1 = operands.s1.data();
  problem.s2 = operands.s2.data();
  problem.u1 = sign_rows(operands.u1, sizes.rank, sizes.outputs);
  problem.u2 = sign_rows(operands.u2, sizes.second_rank(), sizes.columns());
  problem.frame = sign_rows(operands.frame, sizes.outputs, sizes.inputs(), layer.frame);
  problem.u1_scale = static_cast<float>(kU1Scale);
  problem.u2_scale = static_cast<float>(kU2Scale);
  problem.scale = static_cast<float>(kScale);
  problem.weight = view(weight.data(), layer);
  run(problem, blocks, schedule);
  std::vector<double> expected(weight.size());
  for_each_weight(layer, operands,
                  [&](int64_t place, const auto& first, const auto& second, double frame) {
                    double sum = 0;
                    for (const auto& [i, sign] : first) {
                      sum += kU1Scale * sign * static_cast<float>(operands.s1[i]);
                    }
                    for (const auto& [i, sign] : second) {
                      sum += kU2Scale * sign * static_cast<float>(operands.s2[i]);
                    }
                    expected[place] = kScale * frame * sum;
                  });
  expect_close(weight, expected, std::is_same_v<T, float> ? 1e-6 : tolerance<T>());
}

template <typename T>
void check_adjoint(const Layer& layer, const Operands<T>& operands, int64_t blocks,
                   Schedule schedule) {
  const WeightSizes& sizes = layer.sizes;
  const WeightGradient<T> gradient{
      view(operands.grad.data(), layer),
      sign_rows(operands.frame, sizes.outputs, sizes.inputs(), layer.frame)};
  std::vector<T> grad_s1(operands.s1.size());
  FirstGradientProblem<T> first_problem{};
  first_problem.set_sizes(sizes);
  first_problem.gradient = gradient;
  first_problem.u1 = sign_rows(operands.u1, sizes.rank, sizes.outputs);
  first_problem.scale = static_cast<float>(kScale * kU1Scale);
  first_problem.grad_s1 = grad_s1.data();
  run(first_problem, blocks, schedule);
  std::vector<T> grad_s2(operands.s2.size());
  SecondGradientProblem<T> second_problem{};
  second_problem.set_sizes(sizes);
  second_problem.gradient = gradient;
  second_problem.u2 = sign_rows(operands.u2, sizes.second_rank(), sizes.columns());
  second_problem.scale = static_cast<float>(kScale * kU2Scale);
  second_problem.grad_s2 = grad_s2.data();
  run(second_problem, blocks, schedule);
  std::vector<double> expected_s1(grad_s1.size());
  std::vector<double> expected_s2(grad_s2.size());
  for_each_weight(layer, operands,
                  [&](int64_t place, const auto& first, const auto& second, double frame) {
                    const double grad = kScale * frame * static_cast<float>(operands.grad[place]);
                    for (const auto& [i, sign] : first) expected_s1[i] += kU1Scale * sign * grad;
                    for (const auto& [i, sign] : second) expected_s2[i] += kU2Scale * sign * grad;
                  });
  const double allowed = std::is_same_v<T, float> ? 1e-6 : tolerance<T>();
  expect_close(grad_s1, expected_s1, allowed);
  expect_close(grad_s2, expected_s2, allowed);
}

template <typename T>
void check_layer(Layer layer) {
  for (const bool mixes_space : {true, false}) {
    layer.sizes.mixes_space = mixes_space;
    const Operands<T> operands(layer.sizes);
    for (const int64_t blocks : {1, 1000}) {
      for (const Schedule schedule : {kSchedules[0], kSchedules[1]}) {
        check_weight(layer, operands, blocks, schedule);
        check_adjoint(layer, operands, blocks, schedule);
      }
    }
  }
}

TEST(DecodedWeight, EveryType) {
  check_layer<float>({});
  check_layer<BFloat16>({});
  check_layer<Half>({});
}

TEST(DecodedWeight, FrameAndFormats) {
  for (const bool channels_last : {false, true}) {
    check_layer<float>({{1, 4, 33, 17, 6, true}, true, channels_last});
    check_layer<BFloat16>({{1, 4, 33, 17, 6, true}, true, channels_last});
  }
}

TEST(DecodedWeight, GroupsAndOddSizes) {
  check_layer<float>({{3, 2, 7, 5, 4, true}, false, true});
  check_layer<float>({{2, 1, 1, 1, 1, true}, false, false});
  check_layer<Half>({{1, 40, 65, 150, 1, true}, false, false});
  check_layer<float>({{1, 9, 70, 140, 2, true}, false, false});
}

}  // namespace
}  // namespace sketchlayers::cuda
