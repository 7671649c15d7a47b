// SK-FC: a fully connected layer whose weight is a tensor sketch (IJCAI 2018, arXiv 1710.07850).
#pragma once

#include <torch/arg.h>
#include <torch/nn/pimpl.h>

#include <ostream>

#include "nn/sketch_layer.h"

namespace sketchlayers::nn {

// Options of torch::nn::Linear and of a sketch: SKLinear layer(SKLinearOptions(768, 768).rank(64));
struct SKLinearOptions : SketchOptions<SKLinearOptions> {
  SKLinearOptions(int64_t in_features, int64_t out_features)
      : in_features_(in_features), out_features_(out_features) {}

  TORCH_ARG(int64_t, in_features);   // d2
  TORCH_ARG(int64_t, out_features);  // d1
  TORCH_ARG(bool, bias) = true;
};

// Input (*, d2), output (*, d1). The same layer as Python's sketchlayers.SKLinear, bit for bit.
class SKLinearImpl : public SketchLayerImpl<SKLinearImpl, SKLinearOptions> {
 public:
  using SketchLayerImpl::SketchLayerImpl;

  SKLinearImpl(int64_t in_features, int64_t out_features, int64_t rank)
      : SKLinearImpl(SKLinearOptions(in_features, out_features).rank(rank)) {}

  at::Tensor forward(const at::Tensor& input);
  void pretty_print(std::ostream& stream) const override;

  static LayerSizes checked_sizes(const SKLinearOptions& options);
  bool prefers_dense(const at::Tensor& input) const;
};

TORCH_MODULE(SKLinear);

}  // namespace sketchlayers::nn
