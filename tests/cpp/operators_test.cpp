// The operators through PyTorch's dispatcher, as a program that knows only their names calls them.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>

#include "sketchlayers.h"

namespace sketchlayers {
namespace {

struct Parameters {
  at::Tensor s1, s2, u1, u2;
};

at::Tensor signs(int64_t seed, int64_t first_matrix, int64_t groups, int64_t rows,
                 int64_t columns) {
  std::vector<at::Tensor> of_group;
  for (int64_t group = 0; group < groups; ++group) {
    of_group.push_back(sign_matrix(seed, first_matrix + 2 * group, rows, columns));
  }
  return at::stack(of_group);
}

Parameters convolution(int64_t out, int64_t in, int64_t kernel, int64_t rank, int64_t groups,
                       bool spatial) {
  const auto options = at::TensorOptions().dtype(at::kDouble);
  const int64_t positions = kernel * kernel, in_of_group = in / groups;
  return {at::randn({groups * rank, in_of_group, kernel, kernel}, options),
          at::randn({out, rank, kernel, kernel}, options), signs(3, 0, groups, rank, out / groups),
          spatial ? signs(3, 1, groups, rank * positions, in_of_group * positions)
                  : signs(3, 1, groups, rank, in_of_group)};
}

at::Tensor call_conv2d(const at::Tensor& input, const Parameters& p, int64_t groups,
                       const std::string& mixing, const std::string& path) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("sketchlayers::sk_conv2d", "");
  torch::jit::Stack stack;
  torch::jit::push(stack, input, p.s1, p.s2, p.u1, p.u2, c10::IValue(), std::vector<int64_t>{2, 1},
                   std::vector<int64_t>{1, 2}, std::vector<int64_t>{1, 1}, groups, mixing,
                   int64_t{1}, c10::IValue(), c10::IValue(), path);
  op.callBoxed(stack);
  return stack.at(0).toTensor();
}

double relative_error(const at::Tensor& actual, const at::Tensor& expected) {
  return ((actual - expected).norm() / expected.norm()).item<double>();
}

// W_hat of equation (1) for one group: (U1^T S1 / sqrt(k) + S2 U2 / sqrt(k h w)) / 2.
at::Tensor weight_of_group(const Parameters& p, int64_t group, int64_t groups) {
  const int64_t rank = p.s2.size(1), out = p.s2.size(0) / groups, in = p.s1.size(1);
  const int64_t kernel = p.s1.size(2), n = in * kernel * kernel;
  const at::Tensor a = unpack_signs(p.u1[group], out, 0, at::kDouble).t() / std::sqrt(rank);
  const at::Tensor b =
      unpack_signs(p.u2[group], n, 0, at::kDouble) / std::sqrt(rank * kernel * kernel);
  const at::Tensor s1 = p.s1.slice(0, group * rank, (group + 1) * rank).reshape({rank, n});
  const at::Tensor s2 =
      p.s2.slice(0, group * out, (group + 1) * out).reshape({out, rank * kernel * kernel});
  return ((a.mm(s1) + s2.mm(b)) / 2).reshape({out, in, kernel, kernel});
}

class Conv2d : public testing::TestWithParam<std::string> {};

TEST_P(Conv2d, IsTheConvolutionWithTheSketchedWeight) {
  at::manual_seed(0);
  const Parameters p = convolution(8, 12, 3, 2, 2, true);
  const at::Tensor input = at::randn({3, 12, 9, 7}, at::kDouble);
  const at::Tensor weight = at::cat({weight_of_group(p, 0, 2), weight_of_group(p, 1, 2)});
  const at::Tensor expected = at::conv2d(input, weight, {}, {2, 1}, {1, 2}, {1, 1}, 2);
  EXPECT_LT(relative_error(call_conv2d(input, p, 2, "spatial", GetParam()), expected), 1e-13);
}

INSTANTIATE_TEST_SUITE_P(Paths, Conv2d, testing::Values("factored", "folded", "auto"));

TEST(Conv2d, PathsAgreeWithChannelMixing) {
  at::manual_seed(1);
  const Parameters p = convolution(6, 5, 3, 2, 1, false);
  const at::Tensor input = at::randn({2, 5, 8, 8}, at::kDouble);
  EXPECT_LT(relative_error(call_conv2d(input, p, 1, "channel", "factored"),
                           call_conv2d(input, p, 1, "channel", "folded")),
            1e-13);
}

TEST(Conv2d, WrongPathRaises) {
  const Parameters p = convolution(6, 5, 3, 2, 1, true);
  const at::Tensor input = at::randn({2, 5, 8, 8}, at::kDouble);
  EXPECT_THROW(call_conv2d(input, p, 1, "spatial", "shortest"), c10::Error);
}

TEST(Conv2d, PaddingThatPyTorchCannotHoldRaisesOnEveryPath) {
  const Parameters p = convolution(6, 5, 3, 2, 1, true);
  const at::Tensor input = at::randn({2, 5, 8, 8}, at::kDouble);
  ConvArguments conv;
  conv.padding = {1, (int64_t{1} << 33) + 1};
  for (const char* path : {"auto", "factored", "folded"}) {
    EXPECT_THROW(sk_conv2d(input, p.s1, p.s2, p.u1, p.u2, std::nullopt, conv, {}, path),
                 c10::ValueError);
  }
}

TEST(Conv2d, WrongChannelsRaiseWithTheNameOfTheOperator) {
  const Parameters p = convolution(6, 5, 3, 2, 1, true);
  try {
    call_conv2d(at::randn({2, 4, 8, 8}, at::kDouble), p, 1, "spatial", "auto");
    FAIL() << "4 channels were taken where 5 are needed";
  } catch (const c10::Error& error) {
    EXPECT_NE(std::string(error.what()).find("sk_conv2d"), std::string::npos) << error.what();
  }
}

TEST(Weight, AdjointIsTheTransposeOfTheLinearMap) {
  at::manual_seed(2);
  const Parameters p = convolution(8, 12, 3, 2, 2, true);
  const at::Tensor grad = at::randn({8, 6, 3, 3}, at::kDouble);
  const auto [grad_s1, grad_s2] = sk_weight_backward(grad, p.u1, p.u2, {});
  const at::Tensor weight = sk_weight(p.s1, p.s2, p.u1, p.u2, {});
  const double left = (weight * grad).sum().item<double>();
  const double right = ((p.s1 * grad_s1).sum() + (p.s2 * grad_s2).sum()).item<double>();
  EXPECT_NEAR(left, right, 1e-12 * std::abs(left) + 1e-12);
}

}  // namespace
}  // namespace sketchlayers
