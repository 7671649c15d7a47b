// A sketched 3x3 convolution in a C++ program: the parameters s1 and s2, the signs from a seed.
#include <ATen/ATen.h>
#include <sketchlayers.h>

#include <cstdio>

int main() {
  const int64_t channels = 16, rank = 4, seed = 2018;
  const at::Tensor s1 = at::randn({rank, channels, 3, 3});
  const at::Tensor s2 = at::randn({channels, rank, 3, 3});
  const at::Tensor u1 = sketchlayers::sign_matrix(seed, 0, rank, channels).unsqueeze(0);
  const at::Tensor u2 = sketchlayers::sign_matrix(seed, 1, rank * 9, channels * 9).unsqueeze(0);

  const at::Tensor images = at::randn({2, channels, 8, 8});
  sketchlayers::ConvArguments same;
  same.padding = {1, 1};
  const at::Tensor sketched =
      sketchlayers::sk_conv2d(images, s1, s2, u1, u2, std::nullopt, same, {});
  const at::Tensor weight = sketchlayers::sk_weight(s1, s2, u1, u2, {});
  const at::Tensor dense = at::conv2d(images, weight, {}, 1, 1);

  const double error = ((sketched - dense).norm() / dense.norm()).item<double>();
  std::printf("relative difference from the dense convolution: %.1e\n", error);
  return error < 1e-5 ? 0 : 1;
}
