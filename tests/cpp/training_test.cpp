// A C++ program trains a sketched layer: gradients come from the operators' own autograd.
#include <gtest/gtest.h>
#include <torch/nn/functional/loss.h>
#include <torch/optim/sgd.h>

#include "sketchlayers.h"

namespace sketchlayers {
namespace {

class Training : public testing::TestWithParam<std::string> {};

TEST_P(Training, FitsALayerOfItsOwnKind) {
  torch::manual_seed(0);
  const int64_t in = 24, out = 16, rank = 3, examples = 128;
  const torch::Tensor u1 = sign_matrix(1, 0, rank, out).unsqueeze(0);
  const torch::Tensor u2 = sign_matrix(1, 1, rank, in).unsqueeze(0);
  const torch::Tensor inputs = torch::randn({examples, in});
  const auto layer = [&](const torch::Tensor& s1, const torch::Tensor& s2) {
    return sk_linear(inputs, s1, s2, u1, u2, std::nullopt, {}, GetParam());
  };
  const torch::Tensor targets = layer(torch::randn({rank, in}), torch::randn({out, rank}));

  const torch::Tensor s1 = torch::zeros({rank, in}, torch::requires_grad());
  const torch::Tensor s2 = torch::zeros({out, rank}, torch::requires_grad());
  torch::optim::SGD optimizer({s1, s2}, torch::optim::SGDOptions(1.0).momentum(0.9));
  double first = 0, last = 0;
  for (int step = 0; step < 200; ++step) {
    optimizer.zero_grad();
    const torch::Tensor loss = torch::mse_loss(layer(s1, s2), targets);
    loss.backward();
    optimizer.step();
    last = loss.item<double>();
    if (step == 0) first = last;
  }
  EXPECT_GT(first, 0.1);
  EXPECT_LT(last, 1e-3 * first);
}

INSTANTIATE_TEST_SUITE_P(Paths, Training, testing::Values("factored", "folded"));

}  // namespace
}  // namespace sketchlayers
