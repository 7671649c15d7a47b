// The bodies of the CUDA kernels, run on the host against loops in double precision.
#include <gtest/gtest.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include "cuda/channel_gradient.h"
#include "cuda/channel_plan.h"
#include "cuda_block.h"
#include "cuda_values.h"

namespace sketchlayers::cuda {
namespace {

// ---------------------------------------------------------------------------- channel mixing

struct Layer {
  int64_t batch = 2;
  int channels = 24;  // of one group, as are outputs
  int outputs = 40;
  int rank = 10;
  int groups = 1;
  int64_t height = 9, width = 11;
  int kernel_h = 3, kernel_w = 3;
  int64_t stride_h = 1, stride_w = 1;
  int64_t padding_h = 1, padding_w = 1;
  int64_t dilation_h = 1, dilation_w = 1;
  bool channels_last = true;
  bool bias = true;

  ConvAxis vertical() const {
    const int64_t extent = dilation_h * (kernel_h - 1) + 1;
    return {height,    (height + 2 * padding_h - extent) / stride_h + 1,
            kernel_h,  stride_h,
            padding_h, dilation_h};
  }
  ConvAxis horizontal() const {
    const int64_t extent = dilation_w * (kernel_w - 1) + 1;
    return {width,     (width + 2 * padding_w - extent) / stride_w + 1,
            kernel_w,  stride_w,
            padding_w, dilation_w};
  }
  int64_t words(int64_t columns) const { return sign_words(columns); }
};

// Strides of (batch, channel, row, column).
void set_strides(int64_t (&strides)[4], int64_t channels, int64_t height, int64_t width,
                 bool channels_last) {
  strides[0] = channels * height * width;
  strides[1] = channels_last ? 1 : height * width;
  strides[2] = channels_last ? channels * width : width;
  strides[3] = channels_last ? channels : 1;
}

template <typename Traits>
void set_images(Images& images, const void* data, const Layer& layer, int channels, int64_t height,
                int64_t width) {
  images.data = data;
  set_strides(images.strides, layer.groups * channels, height, width, layer.channels_last);
  images.channels = channels;
  images.units = layer.channels_last && channels % Traits::kPerUnit == 0;
  images.channels_first = !layer.channels_last;
}

template <typename T>
struct Operands {
  explicit Operands(const Layer& layer)
      : input(random_values<T>(layer.batch * layer.groups * layer.channels * layer.height *
                               layer.width)),
        s1(random_values<T>(static_cast<int64_t>(layer.groups) * layer.rank * layer.channels *
                            layer.kernel_h * layer.kernel_w)),
        s2(random_values<T>(static_cast<int64_t>(layer.groups) * layer.outputs * layer.rank *
                            layer.kernel_h * layer.kernel_w)),
        bias(random_values<T>(layer.groups * layer.outputs)),
        u1(random_words(layer.groups * layer.rank * layer.words(layer.outputs))),
        u2(random_words(layer.groups * layer.rank * layer.words(layer.channels))) {}

  std::vector<T> input, s1, s2, bias;
  std::vector<int32_t> u1, u2;
};

template <typename T>
FactorView s1_view(const Layer& layer, const std::vector<T>& s1) {
  const int64_t taps = layer.kernel_h * layer.kernel_w;
  return {
      s1.data(), layer.rank * layer.channels * taps, layer.channels * taps, taps, layer.kernel_w,
      1};
}
template <typename T>
FactorView s2_view(const Layer& layer, const std::vector<T>& s2) {
  const int64_t taps = layer.kernel_h * layer.kernel_w;
  return {s2.data(), layer.outputs * layer.rank * taps, taps, layer.rank * taps, layer.kernel_w, 1};
}
SignsView signs_view(const Layer& layer, const std::vector<int32_t>& words, int64_t columns) {
  return {words.data(), layer.rank * layer.words(columns), layer.words(columns)};
}

constexpr double kInnerScale = 0.5;
constexpr double kOuterScale = 0.25;

// Packs the factors and runs all blocks of a kernel whose geometry and operands are set.
template <typename Traits>
void run_channel_conv(ChannelConvParams params, ChannelFactorsParams factors, int groups,
                      Schedule schedule) {
  const ChannelFactorsSizes sizes = ChannelFactors<Traits>::sizes(
      factors.kernel_h * factors.kernel_w, factors.channels, factors.outputs);
  std::vector<Unit> first(static_cast<size_t>(groups * sizes.first_units));
  std::vector<Unit> second(static_cast<size_t>(groups * sizes.second_units));
  std::vector<uint32_t> first_signs(static_cast<size_t>(groups * sizes.first_words));
  std::vector<uint32_t> second_signs(static_cast<size_t>(groups * sizes.second_words));
  factors.packed = params.factors = {first.data(), second.data(), first_signs.data(),
                                     second_signs.data(), sizes};
  for (int group = 0; group < groups; ++group) {
    for (int64_t item = 0; item < sizes.items(); ++item) {
      ChannelFactors<Traits>::pack(factors, item, group);
    }
  }
  params.inner_scale = static_cast<float>(kInnerScale);
  params.outer_scale = static_cast<float>(kOuterScale);
  const int64_t halo = params.halo();
  ASSERT_LE(halo, Traits::kHalo);
  ASSERT_LE(params.tile.images * params.tile.height * params.tile.width, Traits::kPixels);
  for (int64_t block = 0; block < params.tiles(); ++block) {
    for (int group = 0; group < groups; ++group) {
      HostBlock<typename ChannelConv<Traits>::Warp> host(
          Traits::kWarps, static_cast<size_t>(shared_bytes<Traits>(halo)), schedule);
      ChannelConv<Traits>(params, host.shared(), block, group).run(host);
    }
  }
}

template <typename Traits>
void set_layout(ChannelConvParams& params, const void* input, const Layer& layer, int inputs,
                int outputs) {
  set_images<Traits>(params.input, input, layer, inputs, params.vertical.input,
                     params.horizontal.input);
  set_strides(params.output_strides, layer.groups * outputs, params.vertical.output,
              params.horizontal.output, layer.channels_last);
  params.batch = layer.batch;
  params.outputs = outputs;
  params.rank = layer.rank;
  params.output_units = layer.channels_last && outputs % Traits::kPerUnit == 0;
  const auto tile = TileSearch<Traits>(params.vertical, params.horizontal, layer.batch,
                                       layer.groups, 4, halo_for<Traits>(100 << 10))
                        .best();
  ASSERT_TRUE(tile.has_value());
  params.tile = *tile;
}

template <typename T, typename Traits>
std::vector<T> forward(const Layer& layer, const Operands<T>& operands, Schedule schedule) {
  ChannelConvParams params{};
  params.vertical = layer.vertical();
  params.horizontal = layer.horizontal();
  set_layout<Traits>(params, operands.input.data(), layer, layer.channels, layer.outputs);
  std::vector<T> output(static_cast<size_t>(layer.batch * layer.groups * layer.outputs *
                                            params.vertical.output * params.horizontal.output));
  params.output = output.data();
  params.bias = layer.bias ? operands.bias.data() : nullptr;
  ChannelFactorsParams factors{};
  factors.first = s1_view(layer, operands.s1);
  factors.second = s2_view(layer, operands.s2);
  factors.first_signs = signs_view(layer, operands.u2, layer.channels);
  factors.second_signs = signs_view(layer, operands.u1, layer.outputs);
  factors.kernel_h = layer.kernel_h;
  factors.kernel_w = layer.kernel_w;
  factors.rank = layer.rank;
  factors.channels = layer.channels;
  factors.outputs = layer.outputs;
  factors.groups = layer.groups;
  run_channel_conv<Traits>(params, factors, layer.groups, schedule);
  return output;
}

template <typename T, typename Traits>
std::vector<T> input_gradient(const Layer& layer, const Operands<T>& operands,
                              const std::vector<T>& grad, Schedule schedule) {
  ChannelConvParams params{};
  params.vertical = adjoint_axis(layer.vertical());
  params.horizontal = adjoint_axis(layer.horizontal());
  set_layout<Traits>(params, grad.data(), layer, layer.outputs, layer.channels);
  std::vector<T> output(operands.input.size());
  params.output = output.data();
  ChannelFactorsParams factors{};
  factors.first = flipped(s2_view(layer, operands.s2), layer.kernel_h, layer.kernel_w, sizeof(T));
  factors.second = flipped(s1_view(layer, operands.s1), layer.kernel_h, layer.kernel_w, sizeof(T));
  factors.first_signs = signs_view(layer, operands.u1, layer.outputs);
  factors.second_signs = signs_view(layer, operands.u2, layer.channels);
  factors.kernel_h = layer.kernel_h;
  factors.kernel_w = layer.kernel_w;
  factors.rank = layer.rank;
  factors.channels = layer.outputs;
  factors.outputs = layer.channels;
  factors.groups = layer.groups;
  run_channel_conv<Traits>(params, factors, layer.groups, schedule);
  return output;
}

// W_hat (groups * outputs, channels, kernel_h, kernel_w)
template <typename T>
std::vector<double> dense_weight(const Layer& layer, const Operands<T>& operands) {
  std::vector<double> weight;
  const int64_t taps = layer.kernel_h * layer.kernel_w;
  for (int group = 0; group < layer.groups; ++group) {
    const int32_t* u1 = operands.u1.data() + group * layer.rank * layer.words(layer.outputs);
    const int32_t* u2 = operands.u2.data() + group * layer.rank * layer.words(layer.channels);
    for (int o = 0; o < layer.outputs; ++o) {
      for (int c = 0; c < layer.channels; ++c) {
        for (int64_t tap = 0; tap < taps; ++tap) {
          double sum = 0;
          for (int r = 0; r < layer.rank; ++r) {
            const double s1 = static_cast<float>(
                operands.s1[((group * layer.rank + r) * layer.channels + c) * taps + tap]);
            const double s2 = static_cast<float>(
                operands.s2[((group * layer.outputs + o) * layer.rank + r) * taps + tap]);
            sum += sign_at<double>(u1 + r * layer.words(layer.outputs), o) * s1 +
                   sign_at<double>(u2 + r * layer.words(layer.channels), c) * s2;
          }
          weight.push_back(kInnerScale * kOuterScale * sum);
        }
      }
    }
  }
  return weight;
}

// Calls body(input element, weight element, output element) for all that a convolution multiplies.
template <typename Body>
void for_each_product(const Layer& layer, const Body& body) {
  const ConvAxis vertical = layer.vertical();
  const ConvAxis horizontal = layer.horizontal();
  int64_t in[4];
  int64_t out[4];
  set_strides(in, layer.groups * layer.channels, layer.height, layer.width, layer.channels_last);
  set_strides(out, layer.groups * layer.outputs, vertical.output, horizontal.output,
              layer.channels_last);
  for (int64_t n = 0; n < layer.batch; ++n) {
    for (int64_t o = 0; o < layer.groups * layer.outputs; ++o) {
      const int64_t first = o / layer.outputs * layer.channels;
      for (int64_t y = 0; y < vertical.output; ++y) {
        for (int64_t x = 0; x < horizontal.output; ++x) {
          for (int64_t i = 0; i < layer.kernel_h * layer.kernel_w; ++i) {
            const int64_t row = input_position(vertical, y, i / layer.kernel_w);
            const int64_t column = input_position(horizontal, x, i % layer.kernel_w);
            if (row < 0 || row >= layer.height || column < 0 || column >= layer.width) continue;
            for (int64_t c = 0; c < layer.channels; ++c) {
              body(n * in[0] + (first + c) * in[1] + row * in[2] + column * in[3],
                   (o * layer.channels + c) * layer.kernel_h * layer.kernel_w + i,
                   n * out[0] + o * out[1] + y * out[2] + x * out[3]);
            }
          }
        }
      }
    }
  }
}

template <typename T>
std::vector<double> expected_output(const Layer& layer, const Operands<T>& operands) {
  const std::vector<double> weight = dense_weight(layer, operands);
  const ConvAxis vertical = layer.vertical();
  const ConvAxis horizontal = layer.horizontal();
  const int64_t outputs = layer.groups * layer.outputs;
  std::vector<double> output(
      static_cast<size_t>(layer.batch * outputs * vertical.output * horizontal.output));
  int64_t strides[4];
  set_strides(strides, outputs, vertical.output, horizontal.output, layer.channels_last);
  for (size_t i = 0; i < output.size(); ++i) {
    const int64_t o = static_cast<int64_t>(i) / strides[1] % outputs;
    if (layer.bias) output[i] = static_cast<float>(operands.bias[static_cast<size_t>(o)]);
  }
  for_each_product(layer, [&](int64_t in, int64_t w, int64_t out) {
    output[out] += weight[w] * static_cast<float>(operands.input[in]);
  });
  return output;
}

template <typename T>
std::vector<double> expected_input_gradient(const Layer& layer, const Operands<T>& operands,
                                            const std::vector<T>& grad) {
  const std::vector<double> weight = dense_weight(layer, operands);
  std::vector<double> gradient(operands.input.size());
  for_each_product(layer, [&](int64_t in, int64_t w, int64_t out) {
    gradient[in] += weight[w] * static_cast<float>(grad[out]);
  });
  return gradient;
}

template <typename T, int kRankPairs, int kPixelTiles, int kHaloTiles>
void check_layer(const Layer& layer) {
  using Traits = ChannelConvTraits<T, kRankPairs, kPixelTiles, kHaloTiles>;
  ASSERT_LE(layer.rank, Traits::kRank);
  const Operands<T> operands(layer);
  const auto expected = expected_output(layer, operands);
  for (const Schedule schedule : kSchedules) {
    expect_close(forward<T, Traits>(layer, operands, schedule), expected, tolerance<T>());
  }
  if (layer.stride_h != 1 || layer.stride_w != 1) return;
  const auto grad = random_values<T>(static_cast<int64_t>(expected.size()));
  const auto expected_gradient = expected_input_gradient(layer, operands, grad);
  for (const Schedule schedule : kSchedules) {
    expect_close(input_gradient<T, Traits>(layer, operands, grad, schedule), expected_gradient,
                 tolerance<T>());
  }
}

template <typename T>
void check_all_ranks(Layer layer) {
  layer.rank = std::min(layer.rank, 16);
  check_layer<T, 1, 2, 4>(layer);
  layer.rank += 16;
  check_layer<T, 2, 2, 4>(layer);
  layer.rank += 24;
  check_layer<T, 4, 1, 2>(layer);
}

TEST(ChannelConv, EveryTypeAndRank) {
  check_all_ranks<BFloat16>({});
  check_all_ranks<Half>({});
  check_all_ranks<float>({});
}

TEST(ChannelConv, RankOneAndRanksThatFill) {
  for (const int rank : {1, 8, 15, 16}) {
    Layer layer;
    layer.rank = rank;
    check_layer<BFloat16, 1, 2, 4>(layer);
    check_layer<float, 1, 2, 4>(layer);
  }
  Layer layer;
  layer.rank = 40;
  check_layer<BFloat16, 3, 1, 2>(layer);
  layer.rank = 64;
  check_layer<Half, 4, 1, 2>(layer);
}

TEST(ChannelConv, OddSizes) {
  Layer layer;
  layer.channels = 13;
  layer.outputs = 7;
  layer.rank = 5;
  layer.height = 5;
  layer.width = 3;
  for (const bool channels_last : {true, false}) {
    layer.channels_last = channels_last;
    check_layer<BFloat16, 1, 2, 4>(layer);
    check_layer<float, 1, 2, 4>(layer);
  }
  layer.channels = layer.outputs = layer.rank = 1;
  layer.height = layer.width = 1;
  check_layer<Half, 1, 2, 4>(layer);
}

TEST(ChannelConv, ManyChannels) {
  Layer layer;
  layer.channels = 200;  // more than one chunk, the last one not whole
  layer.outputs = 136;
  layer.height = layer.width = 4;
  for (const bool channels_last : {true, false}) {
    layer.channels_last = channels_last;
    check_layer<BFloat16, 1, 2, 4>(layer);
    check_layer<float, 2, 2, 4>(layer);
  }
}

TEST(ChannelConv, LargeKernelsAndUnevenPadding) {
  Layer layer;
  layer.kernel_h = 5;
  layer.kernel_w = 2;
  layer.padding_h = 0;
  layer.padding_w = 3;
  check_layer<BFloat16, 1, 2, 4>(layer);
  layer.kernel_h = 1;
  layer.kernel_w = 7;
  check_layer<Half, 2, 2, 4>(layer);
}

TEST(ChannelConv, StridesAndDilations) {
  Layer layer;
  layer.stride_h = 2;
  layer.stride_w = 3;
  layer.dilation_h = 2;
  check_layer<BFloat16, 1, 2, 4>(layer);
  layer.dilation_w = 3;
  layer.padding_w = 4;
  check_layer<float, 1, 2, 4>(layer);
  layer.stride_h = layer.stride_w = 1;
  check_layer<Half, 1, 2, 4>(layer);
}

TEST(ChannelConv, Groups) {
  Layer layer;
  layer.groups = 3;
  layer.channels = 16;
  layer.outputs = 24;
  for (const bool channels_last : {true, false}) {
    layer.channels_last = channels_last;
    check_layer<BFloat16, 1, 2, 4>(layer);
  }
  layer.channels = 5;
  layer.outputs = 3;
  check_layer<Half, 1, 2, 4>(layer);
}

TEST(ChannelConv, Pointwise) {
  Layer layer;
  layer.kernel_h = layer.kernel_w = 1;
  layer.padding_h = layer.padding_w = 0;
  layer.bias = false;
  check_layer<BFloat16, 1, 2, 4>(layer);
  layer.padding_h = 2;
  layer.stride_w = 2;
  check_layer<float, 1, 2, 4>(layer);
}

TEST(ChannelConv, SmallAndLargeImages) {
  Layer layer;
  layer.batch = 21;
  layer.height = layer.width = 2;
  check_layer<BFloat16, 1, 2, 4>(layer);
  layer.batch = 1;
  layer.channels = layer.outputs = 8;
  layer.height = 37;
  layer.width = 70;
  check_layer<BFloat16, 1, 2, 4>(layer);
}

// ---------------------------------------------------------------------------- parameter gradients

template <typename T>
struct FactorGradients {
  std::vector<T> s1, s2;
};

template <typename T>
std::vector<double> expected_weight_gradient(const Layer& layer, const Operands<T>& operands,
                                             const std::vector<T>& grad) {
  std::vector<double> weight(static_cast<size_t>(layer.groups) * layer.outputs * layer.channels *
                             layer.kernel_h * layer.kernel_w);
  for_each_product(layer, [&](int64_t in, int64_t w, int64_t out) {
    weight[w] +=
        static_cast<double>(static_cast<float>(grad[out])) * static_cast<float>(operands.input[in]);
  });
  return weight;
}

template <typename T>
FactorGradients<double> expected_gradients(const Layer& layer, const Operands<T>& operands,
                                           const std::vector<T>& grad) {
  const std::vector<double> weight = expected_weight_gradient(layer, operands, grad);
  FactorGradients<double> gradients{std::vector<double>(operands.s1.size()),
                                    std::vector<double>(operands.s2.size())};
  const int64_t taps = layer.kernel_h * layer.kernel_w;
  for (int64_t i = 0; i < static_cast<int64_t>(weight.size()); ++i) {
    const int64_t tap = i % taps;
    const int64_t c = i / taps % layer.channels;
    const int64_t o = i / taps / layer.channels % layer.outputs;
    const int64_t group = i / taps / layer.channels / layer.outputs;
    for (int64_t r = 0; r < layer.rank; ++r) {
      const int64_t row = group * layer.rank + r;
      const double u1 = sign_at<double>(operands.u1.data() + row * layer.words(layer.outputs), o);
      const double u2 = sign_at<double>(operands.u2.data() + row * layer.words(layer.channels), c);
      const double value = kInnerScale * kOuterScale * weight[static_cast<size_t>(i)];
      gradients.s1[static_cast<size_t>((row * layer.channels + c) * taps + tap)] += u1 * value;
      gradients
          .s2[static_cast<size_t>(((group * layer.outputs + o) * layer.rank + r) * taps + tap)] +=
          u2 * value;
    }
  }
  return gradients;
}

// Features of all pixels of images (batch, groups * channels, height, width).
template <typename Traits, typename T>
std::vector<T> pixel_features(const Layer& layer, const std::vector<T>& images, int channels,
                              int64_t height, int64_t width, const SignsView& signs,
                              Schedule schedule) {
  PixelFeaturesParams params{};
  set_images<Traits>(params.images, images.data(), layer, channels, height, width);
  params.height = height;
  params.width = width;
  params.pixels = layer.batch * height * width;
  params.rank = layer.rank;
  params.signs = signs;
  params.scale = static_cast<float>(kInnerScale);
  std::vector<T> features(static_cast<size_t>(layer.groups * params.pixels * Traits::kRank) + 8);
  params.features = features.data();
  for (int64_t block = 0; block < ceil_divide(params.pixels, Traits::kPixels); ++block) {
    for (int group = 0; group < layer.groups; ++group) {
      HostBlock<typename PixelFeatures<Traits>::Warp> host(
          Traits::kWarps, PixelFeatures<Traits>::kSharedBytes, schedule);
      PixelFeatures<Traits>(params, host.shared(), block, group).run(host);
    }
  }
  return features;
}

template <typename Traits, bool kShiftsImages, typename T>
void run_gradient(const ChannelGradientParams& params, const FactorGradient& gradient,
                  const FactorView& view, std::vector<T>& result, Schedule schedule) {
  const int taps = static_cast<int>(params.vertical.kernel * params.horizontal.kernel);
  using Body = ChannelGradient<Traits, kShiftsImages>;
  for (int split = 0; split < params.splits; ++split) {
    for (int chunk = 0; chunk < chunks<Traits>(gradient.images.channels); ++chunk) {
      for (int tap_group = 0; tap_group * Traits::kTaps < taps; ++tap_group) {
        for (int group = 0; group < params.groups; ++group) {
          HostBlock<typename Body::Warp> host(
              Traits::kWarps, static_cast<size_t>(gradient_shared_bytes<Traits>(params.halo())),
              schedule);
          Body(params, host.shared(), split, chunk, tap_group, group).run(host);
        }
      }
    }
  }
  GradientSumParams sum{};
  sum.partial = gradient.partial;
  sum.gradient = result.data();
  sum.view = view;
  sum.elements = static_cast<int64_t>(result.size());
  sum.splits = params.splits;
  sum.rank = params.rank;
  sum.channels = gradient.images.channels;
  sum.kernel_h = static_cast<int>(params.vertical.kernel);
  sum.kernel_w = static_cast<int>(params.horizontal.kernel);
  sum.scale = static_cast<float>(kOuterScale);
  for (int64_t i = 0; i < sum.elements; ++i) add_splits<T>(sum, i);
}

template <typename Traits, typename T>
FactorGradients<T> gradients(const Layer& layer, const Operands<T>& operands,
                             const std::vector<T>& grad, int splits, Schedule schedule) {
  ChannelGradientParams params{};
  params.vertical = layer.vertical();
  params.horizontal = layer.horizontal();
  const auto of_grad = pixel_features<Traits>(
      layer, grad, layer.outputs, params.vertical.output, params.horizontal.output,
      signs_view(layer, operands.u1, layer.outputs), schedule);
  const auto of_input = pixel_features<Traits>(
      layer, operands.input, layer.channels, params.vertical.input, params.horizontal.input,
      signs_view(layer, operands.u2, layer.channels), schedule);
  const auto side = [&](FactorGradient& gradient, const std::vector<T>& images, int channels,
                        int64_t height, int64_t width, const std::vector<T>& features,
                        std::vector<float>& partial, size_t elements) {
    set_images<Traits>(gradient.images, images.data(), layer, channels, height, width);
    gradient.features = features.data();
    partial.assign(static_cast<size_t>(splits) * elements, std::nanf(""));
    gradient.partial = partial.data();
  };
  std::vector<float> first, second;
  side(params.first, operands.input, layer.channels, params.vertical.input, params.horizontal.input,
       of_grad, first, operands.s1.size());
  side(params.second, grad, layer.outputs, params.vertical.output, params.horizontal.output,
       of_input, second, operands.s2.size());
  params.batch = layer.batch;
  params.groups = layer.groups;
  params.rank = layer.rank;
  params.splits = splits;
  const auto tile = TileSearch<Traits>(params.vertical, params.horizontal, layer.batch,
                                       layer.groups, 4, gradient_halo_for<Traits>(100 << 10))
                        .best();
  params.tile = tile.value();
  FactorGradients<T> result{std::vector<T>(operands.s1.size()), std::vector<T>(operands.s2.size())};
  run_gradient<Traits, true>(params, params.first, s1_view(layer, result.s1), result.s1, schedule);
  run_gradient<Traits, false>(params, params.second, s2_view(layer, result.s2), result.s2,
                              schedule);
  return result;
}

template <typename T, int kRankPairs>
void check_gradients(const Layer& layer) {
  using Traits = ChannelGradientTraits<T, kRankPairs>;
  ASSERT_LE(layer.rank, Traits::kRank);
  const Operands<T> operands(layer);
  const auto grad = random_values<T>(layer.batch * layer.groups * layer.outputs *
                                     layer.vertical().output * layer.horizontal().output);
  const auto expected = expected_gradients(layer, operands, grad);
  int splits = 1;
  for (const Schedule schedule : kSchedules) {
    const auto actual = gradients<Traits>(layer, operands, grad, splits, schedule);
    expect_close(actual.s1, expected.s1, tolerance<T>());
    expect_close(actual.s2, expected.s2, tolerance<T>());
    splits += 2;
  }
}

TEST(ChannelGradient, EveryTypeAndRank) {
  for (const bool channels_last : {true, false}) {
    Layer layer;
    layer.channels_last = channels_last;
    check_gradients<BFloat16, 1>(layer);
    layer.rank = 26;
    check_gradients<Half, 2>(layer);
    layer.rank = 40;
    check_gradients<BFloat16, 3>(layer);
    layer.rank = 64;
    check_gradients<Half, 4>(layer);
  }
}

TEST(ChannelGradient, OddSizes) {
  Layer layer;
  layer.channels = 13;
  layer.outputs = 7;
  layer.rank = 5;
  layer.height = 5;
  layer.width = 3;
  check_gradients<BFloat16, 1>(layer);
  layer.channels = layer.outputs = layer.rank = 1;
  layer.height = layer.width = 1;
  check_gradients<Half, 1>(layer);
}

TEST(ChannelGradient, ManyChannelsTapsAndTiles) {
  Layer layer;
  layer.channels = 72;
  layer.outputs = 136;
  check_gradients<BFloat16, 1>(layer);
  layer.channels = 16;
  layer.outputs = 24;
  layer.kernel_h = 5;
  layer.kernel_w = 4;
  layer.padding_h = 2;
  check_gradients<Half, 1>(layer);
  layer.height = 30;
  layer.width = 41;
  layer.kernel_h = layer.kernel_w = 3;
  check_gradients<Half, 1>(layer);
}

TEST(ChannelGradient, StridesDilationsAndGroups) {
  Layer layer;
  layer.stride_h = 2;
  layer.stride_w = 3;
  layer.dilation_h = 2;
  check_gradients<BFloat16, 1>(layer);
  layer.groups = 3;
  layer.channels = 16;
  layer.outputs = 24;
  check_gradients<Half, 1>(layer);
  layer.channels = 5;
  layer.outputs = 3;
  layer.channels_last = false;
  check_gradients<Half, 1>(layer);
}

TEST(ChannelGradient, Pointwise) {
  Layer layer;
  layer.kernel_h = layer.kernel_w = 1;
  layer.padding_h = layer.padding_w = 0;
  check_gradients<BFloat16, 1>(layer);
}

// ---------------------------------------------------------------------------- choice of tiles

TEST(TileSearch, TilesCoverTheImageWithinTheLimits) {
  using Traits = ChannelConvTraits<BFloat16, 1, 2, 4>;
  for (const int64_t size : {1, 2, 7, 8, 14, 28, 57, 224, 5000}) {
    for (const int64_t kernel : {1, 3, 5, 7}) {
      for (const int64_t stride : {1, 2}) {
        const ConvAxis axis{size * stride, size, kernel, stride, kernel / 2, 1};
        for (const int64_t batch : {1, 128}) {
          const auto tile =
              TileSearch<Traits>(axis, axis, batch, 1, 132, halo_for<Traits>(100 << 10)).best();
          ASSERT_TRUE(tile.has_value());
          const int64_t halo =
              tile->images * halo_extent(axis, tile->height) * halo_extent(axis, tile->width);
          EXPECT_LE(shared_bytes<Traits>(halo), 100 << 10);
          EXPECT_LE(halo, Traits::kHalo);
          EXPECT_LE(tile->images * tile->height * tile->width, Traits::kPixels);
          EXPECT_LE(tile->images, batch);
          if (tile->images > 1) {
            EXPECT_EQ(tile->height, size);
          }
        }
      }
    }
  }
}

TEST(TileSearch, ThereIsNoneForAHaloThatDoesNotFit) {
  using Traits = ChannelConvTraits<BFloat16, 1, 2, 4>;
  const ConvAxis axis{2000, 1, 3, 1, 0, 900};
  EXPECT_FALSE(
      TileSearch<Traits>(axis, axis, 1, 1, 132, halo_for<Traits>(100 << 10)).best().has_value());
  const ConvAxis wide{int64_t{1} << 41, 1, 2, 1, 0, int64_t{1} << 39};
  EXPECT_FALSE(
      TileSearch<Traits>(wide, wide, 1, 1, 132, halo_for<Traits>(100 << 10)).best().has_value());
}

}  // namespace
}  // namespace sketchlayers::cuda
