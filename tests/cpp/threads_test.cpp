// Many threads that call one module and the operators. What it is for is the thread sanitizer
// (`make sanitize`); the results are compared all the same.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <atomic>
#include <thread>
#include <vector>

#include "cuda/first_use.h"
#include "sketchlayers.h"

namespace {

using sketchlayers::nn::SKConv2d;
using sketchlayers::nn::SKConv2dOptions;
using sketchlayers::nn::SKLinear;
using sketchlayers::nn::SKLinearOptions;

constexpr int kThreads = 4;
constexpr int kCalls = 8;

template <typename Work>
void at_once(const Work& work) {
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&work, i] {
      for (int call = 0; call < kCalls; ++call) work(kCalls * i + call);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(Threads, OneModuleInference) {
  at::manual_seed(0);
  SKConv2d conv(SKConv2dOptions(4, 16, 3).padding(1).rank(2).seed(1));
  SKLinear linear(SKLinearOptions(16, 8).rank(2).seed(2));
  conv->eval();
  linear->eval();
  const auto run = [&](const at::Tensor& x) {
    const at::NoGradGuard no_grad;
    return linear->forward(conv->forward(x).mean({2, 3}));
  };
  const at::Tensor x = at::randn({2, 4, 7, 7});
  const at::Tensor expected = run(x);
  at_once([&](int) { EXPECT_TRUE(run(x).equal(expected)); });
}

TEST(Threads, OneModuleTraining) {
  at::manual_seed(0);
  SKConv2d conv(SKConv2dOptions(4, 16, 3).padding(1).rank(2).seed(1));
  const at::Tensor x = at::randn({2, 4, 7, 7});
  const auto gradients = [&] {
    return torch::autograd::grad({conv->forward(x).square().sum()}, conv->parameters());
  };
  const auto expected = gradients();
  at_once([&](int) {
    const auto found = gradients();
    for (size_t i = 0; i < found.size(); ++i) EXPECT_TRUE(found[i].equal(expected[i]));
  });
}

TEST(Threads, SignsAndHashes) {
  at_once([](int i) {
    const at::Tensor signs = sketchlayers::sign_matrix(i % 2, 0, 9, 200);
    const at::Tensor again = sketchlayers::sign_matrix(i % 2, 0, 9, 200);
    EXPECT_TRUE(signs.equal(again));
    EXPECT_EQ(sketchlayers::unpack_signs(signs, 200).numel(), 1800);
  });
}

TEST(Threads, PlansWhileConstantsChange) {
  at_once([](int i) {
    if (i % 4 == 0) {
      sketchlayers::reset_cost_model();
      return;
    }
    sketchlayers::PlanProblem problem;
    problem.batch = 1 + i;
    problem.in_channels = problem.out_channels = 64;
    problem.sketch_rank = 4;
    problem.is_linear = true;
    sketchlayers::plan(problem);
  });
}

// One thread checks; the others take the composition meanwhile, and nobody waits.
TEST(Threads, FirstUseOfAKernel) {
  sketchlayers::cuda::FirstUse good, wrong;
  std::atomic<int> checks = 0, warnings = 0;
  const auto allows = [&](sketchlayers::cuda::FirstUse& use, const char* found) {
    const auto check = [&] {
      ++checks;
      std::this_thread::yield();
      return std::string(found);
    };
    return use.allows([] { return true; }, check, [&](const std::string&) { ++warnings; });
  };
  at_once([&](int) {
    allows(good, "");
    EXPECT_FALSE(allows(wrong, "differs"));
  });
  EXPECT_TRUE(allows(good, ""));
  EXPECT_EQ(checks, 2);
  EXPECT_EQ(warnings, 1);
}

}  // namespace
