// The LibTorch modules: what a C++ program makes, trains, saves and runs. test_parity.py compares
// them with the Python layers.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/serialize.h>

#include <filesystem>
#include <functional>
#include <sstream>

#include "sketchlayers.h"

namespace sketchlayers::nn {
namespace {

SKConv2dOptions conv() { return SKConv2dOptions(8, 12, {3, 2}).rank(2).seed(7); }

std::string path_of(const std::string& name) {
  return (std::filesystem::path(testing::TempDir()) / name).string();
}

at::Tensor dense_conv2d(const SKConv2d& layer, const at::Tensor& input, at::IntArrayRef padding,
                        int64_t groups = 1) {
  return at::conv2d(input, layer->dense_weight(), layer->bias, 1, padding, 1, groups);
}

double relative_error(const at::Tensor& actual, const at::Tensor& expected) {
  return ((actual - expected).norm() / expected.norm()).item<double>();
}

TEST(Modules, HaveTheParametersOfThePythonLayers) {
  SKConv2d layer(conv().groups(2).num_sketches(2).rank(1).blocks(2).mixing("channel"));
  const auto parameters = layer->named_parameters();
  EXPECT_EQ(parameters.keys(), (std::vector<std::string>{"s1", "s2", "bias"}));
  EXPECT_EQ(parameters["s1"].sizes(), (std::vector<int64_t>{4, 4, 3, 2}));
  EXPECT_EQ(parameters["s2"].sizes(), (std::vector<int64_t>{12, 2, 3, 2}));
  EXPECT_EQ(layer->named_buffers().keys(), (std::vector<std::string>{"seed_bits"}));
  EXPECT_EQ(layer->u1.sizes(), (std::vector<int64_t>{2, 4, 4}));
  EXPECT_EQ(layer->u2.sizes(), (std::vector<int64_t>{2, 4, 4}));

  SKLinear linear(SKLinearOptions(40, 24).rate(0.25).bias(false));
  EXPECT_EQ(linear->named_parameters().keys(), (std::vector<std::string>{"s1", "s2"}));
  EXPECT_EQ(linear->rank(), 4);  // 240 / 64 = 3.75
  EXPECT_DOUBLE_EQ(linear->rate(), 256.0 / 960);
}

TEST(Modules, PathsAreTheConvolutionWithTheDenseWeight) {
  torch::manual_seed(0);
  SKConv2d layer(conv().groups(2).padding({1, 0}));
  layer->to(torch::kDouble);
  const at::Tensor input = at::randn({3, 8, 9, 7}, at::kDouble);
  const at::Tensor expected = dense_conv2d(layer, input, {1, 0}, 2);
  for (const char* path : {"auto", "factored", "folded"}) {
    layer->options.path(path);
    EXPECT_LT(relative_error(layer(input), expected), 1e-13) << path;
    EXPECT_LT(relative_error(layer(input[0]), expected[0]), 1e-13) << path;
  }
}

TEST(Modules, PadAsTheConvolutionDoes) {
  torch::manual_seed(0);
  const at::Tensor input = at::randn({2, 8, 6, 6});
  SKConv2d same(conv().padding(torch::kSame));
  EXPECT_EQ(same(input).sizes(), (std::vector<int64_t>{2, 12, 6, 6}));
  const at::Tensor padded = at::pad(input, {0, 1, 1, 1}, "constant");
  EXPECT_LT(relative_error(same(input), dense_conv2d(same, padded, {0, 0})), 1e-5);

  SKConv2d reflected(conv().padding(1).padding_mode(torch::kReflect));
  const at::Tensor mirror = at::pad(input, {1, 1, 1, 1}, "reflect");
  EXPECT_LT(relative_error(reflected(input), dense_conv2d(reflected, mirror, {0, 0})), 1e-5);
}

TEST(Modules, SeedAndSignsOutliveAChangeOfType) {
  SKConv2d layer(conv().seed((int64_t{1} << 60) + 1).frame("signs"));
  const at::Tensor u1 = layer->u1, input = at::randn({1, 8, 5, 5}, at::kDouble);
  layer->to(torch::kHalf);
  layer->to(torch::kDouble);
  EXPECT_EQ(layer->seed(), (int64_t{1} << 60) + 1);
  EXPECT_TRUE(at::equal(layer->u1, u1));
  EXPECT_EQ(layer(input).scalar_type(), at::kDouble);
}

TEST(Modules, AnArchiveBringsItsSeed) {
  SKConv2d saved(conv()), loaded(conv().seed(8));
  EXPECT_FALSE(at::equal(saved->u1, loaded->u1));
  std::stringstream archive;
  torch::save(saved, archive);
  torch::load(loaded, archive);
  const at::Tensor input = at::randn({1, 8, 5, 5});
  EXPECT_TRUE(at::equal(saved(input), loaded(input)));
  loaded->reset_parameters();
  EXPECT_EQ(loaded->seed(), 7);
}

// The means of equal seeds are the seed, in half precision too; those of different ones are none.
TEST(Modules, AnAverageOfCopiesKeepsTheirSeed) {
  SKConv2d layer(conv().seed((int64_t{1} << 62) + 12345));
  for (const at::ScalarType type : {at::kFloat, at::kHalf, at::kBFloat16}) {
    layer->to(type);
    for (int step = 0; step < 50; ++step) {
      layer->seed_bits.copy_(layer->seed_bits * 0.9 + layer->seed_bits * 0.1);
    }
    layer->to(torch::kFloat);
    layer->forward(at::randn({1, 8, 5, 5}));
    EXPECT_EQ(layer->seed(), (int64_t{1} << 62) + 12345);
  }
  SKConv2d other(conv().seed(8));
  layer->seed_bits.copy_((layer->seed_bits + other->seed_bits) / 2);
  EXPECT_THROW(layer->forward(at::randn({1, 8, 5, 5})), c10::ValueError);
}

TEST(Modules, ASeedWrittenIntoTheBufferTakesEffect) {
  SKConv2d layer(conv()), other(conv().seed(8));
  layer->eval();
  other->eval();
  const at::Tensor input = at::randn({1, 8, 5, 5});
  const torch::NoGradGuard no_grad;
  layer->forward(input);
  for (const char* name : {"s1", "s2", "bias"}) {
    layer->named_parameters()[name].set_data(other->named_parameters()[name].clone());
  }
  layer->seed_bits.data().copy_(other->seed_bits);
  EXPECT_TRUE(at::equal(layer->forward(input), other->forward(input)));
  EXPECT_EQ(layer->seed(), 8);
}

TEST(Modules, AWritePastTheVersionCounterIsNoticed) {
  SKConv2d layer(conv().bias(false));
  layer->options.path("folded");
  layer->eval();
  const at::Tensor input = at::randn({1, 8, 5, 5});
  const torch::NoGradGuard no_grad;
  const at::Tensor before = layer->forward(input);
  layer->s1.data().mul_(2);
  layer->s2.data().mul_(2);
  EXPECT_LT(relative_error(layer->forward(input), before * 2), 1e-6);
}

TEST(Modules, ACloneIsAnotherLayer) {
  SKConv2d layer(SKConv2dOptions(8, 12, 3).rank(2));  // with a seed that was drawn
  const auto copy = std::dynamic_pointer_cast<SKConv2dImpl>(layer->clone());
  const at::Tensor input = at::randn({1, 8, 5, 5}), before = layer(input);
  EXPECT_TRUE(at::equal(copy->forward(input), before));
  {
    const torch::NoGradGuard no_grad;
    copy->s1.zero_();
  }
  EXPECT_TRUE(at::equal(layer(input), before));
  EXPECT_FALSE(at::equal(copy->forward(input), before));
}

TEST(Modules, AStateDictBringsItsSeed) {
  SKConv2d first(conv());
  torch::nn::Sequential saved(first, torch::nn::ReLU());
  torch::nn::Sequential loaded(SKConv2d(conv().seed(8)), torch::nn::ReLU());
  const std::string path = path_of("modules_test_state.pt");
  save_state_dict(*saved, path);
  load_state_dict(*loaded, path);
  const at::Tensor input = at::randn({1, 8, 5, 5});
  EXPECT_TRUE(at::equal(saved->forward(input), loaded->forward(input)));
}

TEST(Modules, AnotherLayersStateDictLeavesTheLayerAlone) {
  const std::string path = path_of("modules_test_other.pt");
  save_state_dict(*SKConv2d(conv().rank(3)), path);
  SKConv2d layer(conv());
  const at::Tensor s1 = layer->s1.clone();
  EXPECT_THROW(load_state_dict(*layer, path), c10::Error);
  EXPECT_THROW(load_state_dict(*SKConv2d(conv().rank(3).bias(false)), path), c10::Error);
  EXPECT_THROW(load_state_dict(*layer, path_of("nowhere.pt")), c10::Error);
  EXPECT_TRUE(at::equal(layer->s1, s1));
}

TEST(Modules, WhatIsNoSeedLeavesTheLayersAlone) {
  const std::string path = path_of("modules_test_seed.pt");
  SKConv2d negative(conv());
  negative->seed_bits.fill_(-1);
  torch::nn::Sequential saved(negative, torch::nn::ReLU());
  torch::nn::Sequential loaded(SKConv2d(conv().seed(8)), torch::nn::ReLU());
  save_state_dict(*saved, path);
  const at::Tensor input = at::randn({1, 8, 5, 5}), before = loaded->forward(input);
  EXPECT_THROW(load_state_dict(*loaded, path), c10::ValueError);
  EXPECT_TRUE(at::equal(loaded->forward(input), before));
}

TEST(Modules, AKeptWeightFollowsTheFactors) {
  torch::manual_seed(0);
  SKConv2d layer(conv().frame("signs"));
  const at::Tensor input = at::randn({1, 8, 5, 5});
  layer->eval();
  const torch::NoGradGuard no_grad;
  const at::Tensor before = layer(input);
  EXPECT_TRUE(at::equal(layer(input), before));
  layer->s1.add_(1);
  EXPECT_FALSE(at::equal(layer(input), before));
  EXPECT_TRUE(at::equal(layer(input), dense_conv2d(layer, input, {0, 0})));
}

TEST(Modules, GradientsAreRecordedAfterInference) {
  SKConv2d layer(conv().frame("signs"));
  const at::Tensor input = at::randn({1, 8, 5, 5});
  layer->eval();
  at::Tensor kept;
  {
    const torch::InferenceMode inference;
    kept = layer(input);
  }
  const at::Tensor output = layer(input);  // records gradients
  EXPECT_TRUE(at::equal(output, kept));
  output.sum().backward();
  EXPECT_TRUE(layer->s1.grad().defined());
}

TEST(Modules, LearnInASequential) {
  torch::manual_seed(0);
  torch::nn::Sequential model(SKLinear(6, 16, 2), torch::nn::ReLU(), SKLinear(16, 1, 1));
  const at::Tensor inputs = at::randn({64, 6}), targets = inputs.abs().sum(1, true);
  double first = 0, last = 0;
  for (int step = 0; step < 300; ++step) {
    model->zero_grad();
    const at::Tensor loss = at::mse_loss(model->forward(inputs), targets);
    loss.backward();
    const torch::NoGradGuard no_grad;
    for (at::Tensor& parameter : model->parameters()) parameter.sub_(parameter.grad(), 0.02);
    last = loss.item<double>();
    if (step == 0) first = last;
  }
  EXPECT_LT(last, 0.2 * first);
}

TEST(Modules, TellWhatTheyAre) {
  std::ostringstream stream;
  stream << SKConv2d(SKConv2dOptions(8, 12, 3).rank(2).padding(torch::kSame).frame("signs"));
  EXPECT_EQ(stream.str(),
            "sketchlayers::nn::SKConv2d(8, 12, kernel_size=[3, 3], stride=[1, 1], padding=same, "
            "rank=2, frame=signs, rate=0.424658)");
}

struct Mistake {
  std::function<void()> make;
  const char* message;
};

TEST(Modules, MistakesAreTold) {
  const auto make = [](SKConv2dOptions options) { return [=] { SKConv2d layer(options); }; };
  const Mistake mistakes[] = {
      {make(SKConv2dOptions(0, 12, 3).rank(2)), "in_channels must be at least 1 (got in_chan"},
      {make(conv().groups(3)), "in_channels must be divisible by groups (got in_channels=8, gr"},
      {make(SKConv2dOptions(8, 12, 0).rank(2)), "kernel_size must be at least 1"},
      {make(conv().stride({1, 0})), "stride must be at least 1 (got stride=0)"},
      {make(conv().stride(2).padding(torch::kSame)), "stride must be 1 with padding='same'"},
      {make(conv().padding(-1)), "padding must be at least 0 (got padding=-1)"},
      {make(conv().stride(32769)), "stride must be at most 32768 (got stride=32769)"},
      {make(conv().padding({1, 8589934593})), "padding must be at most 32768 (got padding=858993"},
      {make(conv().dilation(2147483648)), "dilation must be at most 32768"},
      {make(SKConv2dOptions(8, 12, 4).rank(2).padding(torch::kSame).dilation(32768)),
       "padding='same' of a side must be at most 32768"},
      {make(conv().num_sketches(0)), "num_sketches must be at least 1"},
      {make(conv().mixing("none")), "mixing must be one of 'spatial', 'channel' (got mixing='none"},
      {make(conv().blocks(3)), "blocks must divide the inputs and the outputs of a group"},
      {make(conv().signs("gaussian")), "signs must be one of 'rademacher', 'hadamard'"},
      {make(conv().frame("random")), "frame must be one of 'signs' (got frame='random')"},
      {make(conv().scale("none")), "scale must be one of 'paper', 'normalized'"},
      {make(conv().scale(-1.0)), "scale must be finite and above 0 (got scale=-1)"},
      {make(conv().rate(0.1)), "exactly one of rank and rate must be given (got both)"},
      {make(SKConv2dOptions(8, 12, 3)), "exactly one of rank and rate must be given (got none"},
      {make(conv().rank(std::nullopt).rate(1.5)), "rate must be in (0, 1] (got rate=1.5)"},
      {make(conv().num_sketches(5)), "num_sketches * rank must be at most min(inputs, outputs)"},
      {make(conv().seed(-1)), "seed must be in [0, 2**63) (got seed=-1)"},
      {[] { SKConv2d(conv())->forward(at::randn({1, 9, 5, 5})); }, "sk_conv2d: input must have"},
      {[] { SKConv2d(conv().frame("signs").path("factored"))->forward(at::randn({1, 8, 5, 5})); },
       "a frame needs the dense weight"},
      {[] { SKLinear(8, 12, 9); }, "SKLinear: num_sketches * rank must be at most"},
  };
  for (const Mistake& mistake : mistakes) {
    try {
      mistake.make();
      ADD_FAILURE() << "nothing raised: " << mistake.message;
    } catch (const c10::Error& error) {
      EXPECT_NE(std::string(error.what()).find(mistake.message), std::string::npos)
          << error.what_without_backtrace();
    }
  }
}

}  // namespace
}  // namespace sketchlayers::nn
