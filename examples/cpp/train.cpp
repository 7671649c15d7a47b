// Trains a network with sketched layers in C++: is a bright spot in the upper or the lower half?
//
//   train [STATE.pt]     writes the trained state dict, which Python reads with torch.load
#include <sketchlayers.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/pooling.h>
#include <torch/optim/sgd.h>

#include <cstdio>
#include <utility>

using sketchlayers::nn::SKConv2d;
using sketchlayers::nn::SKConv2dOptions;
using sketchlayers::nn::SKLinear;
using sketchlayers::nn::SKLinearOptions;

namespace {

torch::nn::Sequential network() {
  return torch::nn::Sequential(torch::nn::Conv2d(torch::nn::Conv2dOptions(1, 16, 3).padding(1)),
                               torch::nn::ReLU(), torch::nn::MaxPool2d(2),
                               SKConv2d(SKConv2dOptions(16, 32, 3).padding(1).rank(4).blocks(2)),
                               torch::nn::ReLU(), torch::nn::MaxPool2d(2), torch::nn::Flatten(),
                               SKLinear(SKLinearOptions(512, 2).rank(2).scale("normalized")));
}

// Noise with a spot, and whether the spot is in the lower half.
std::pair<at::Tensor, at::Tensor> spots(int64_t count) {
  at::Tensor images = at::randn({count, 1, 16, 16}) / 4;
  const at::Tensor lower = at::randint(2, {count}, at::kLong);
  const at::Tensor rows = at::randint(8, {count}, at::kLong) + 8 * lower;
  const at::Tensor columns = at::randint(16, {count}, at::kLong);
  images.index_put_({at::arange(count), at::zeros({count}, at::kLong), rows, columns}, 4.0);
  return {images, lower};
}

}  // namespace

int main(int argc, char** argv) {
  torch::manual_seed(0);
  torch::nn::Sequential model = network();
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.05).momentum(0.9));
  for (int step = 1; step <= 60; ++step) {
    const auto [images, labels] = spots(32);
    optimizer.zero_grad();
    const at::Tensor loss = at::cross_entropy_loss(model->forward(images), labels);
    loss.backward();
    optimizer.step();
    if (step % 20 == 0) std::printf("step %d: loss %.3f\n", step, loss.item<double>());
  }

  model->eval();
  const torch::NoGradGuard no_grad;
  const auto [images, labels] = spots(200);
  const double accuracy =
      model->forward(images).argmax(1).eq(labels).to(at::kDouble).mean().item<double>();
  std::printf("accuracy on new images: %.1f %%\n", 100 * accuracy);
  if (argc > 1) sketchlayers::nn::save_state_dict(*model, argv[1]);
  return accuracy > 0.8 ? 0 : 1;
}
