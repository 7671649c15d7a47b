// SK-CONV: a convolution whose weight is a tensor sketch (IJCAI 2018, arXiv 1710.07850).
#pragma once

#include <torch/arg.h>
#include <torch/expanding_array.h>
#include <torch/nn/options/conv.h>
#include <torch/nn/pimpl.h>

#include <ostream>

#include "nn/sketch_layer.h"

namespace sketchlayers::nn {

// Options of torch::nn::Conv2d and of a sketch:
//   SKConv2d layer(SKConv2dOptions(96, 192, 5).padding(2).rate(0.1).mixing("channel").seed(1));
struct SKConv2dOptions : SketchOptions<SKConv2dOptions> {
  using padding_t = torch::nn::Conv2dOptions::padding_t;
  using padding_mode_t = torch::nn::Conv2dOptions::padding_mode_t;

  SKConv2dOptions(int64_t in_channels, int64_t out_channels, torch::ExpandingArray<2> kernel_size)
      : in_channels_(in_channels), out_channels_(out_channels), kernel_size_(kernel_size) {}

  TORCH_ARG(int64_t, in_channels);   // d2
  TORCH_ARG(int64_t, out_channels);  // d1
  TORCH_ARG(torch::ExpandingArray<2>, kernel_size);
  TORCH_ARG(torch::ExpandingArray<2>, stride) = 1;
  // Numbers, torch::kSame or torch::kValid.
  TORCH_ARG(padding_t, padding) = 0;

 public:
  SKConv2dOptions& padding(std::initializer_list<int64_t> sides) {
    return padding(torch::ExpandingArray<2>(sides));
  }

  TORCH_ARG(torch::ExpandingArray<2>, dilation) = 1;
  // Independent sketches, one for each group of channels.
  TORCH_ARG(int64_t, groups) = 1;
  TORCH_ARG(bool, bias) = true;
  TORCH_ARG(padding_mode_t, padding_mode) = torch::kZeros;
  // "spatial" sketches channels and kernel positions together (Definition 3, the paper's layer);
  // "channel" sketches channels alone (Definition 2), which needs h w times fewer operations and
  // has the larger variance.
  TORCH_ARG(std::string, mixing) = "spatial";
};

// Input (N, d2, H, W) or (d2, H, W), as for torch::nn::Conv2d. The same layer as Python's
// sketchlayers.SKConv2d, bit for bit.
class SKConv2dImpl : public SketchLayerImpl<SKConv2dImpl, SKConv2dOptions> {
 public:
  using SketchLayerImpl::SketchLayerImpl;

  SKConv2dImpl(int64_t in_channels, int64_t out_channels, torch::ExpandingArray<2> kernel_size,
               int64_t rank)
      : SKConv2dImpl(SKConv2dOptions(in_channels, out_channels, kernel_size).rank(rank)) {}

  at::Tensor forward(const at::Tensor& input);
  void pretty_print(std::ostream& stream) const override;

  static LayerSizes checked_sizes(const SKConv2dOptions& options);
  bool prefers_dense(const at::Tensor& input) const;
};

TORCH_MODULE(SKConv2d);

}  // namespace sketchlayers::nn
