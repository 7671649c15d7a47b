#include "cpu/factors.h"

namespace sketchlayers::cpu {

Factors::Factors(const SketchTensors& tensors, const Sketch& sketch)
    : sketch_(sketch),
      s1_(tensors.s1.to(at::kFloat).contiguous()),
      s2_(tensors.s2.to(at::kFloat).contiguous()),
      u1_(tensors.u1.contiguous()),
      u2_(tensors.u2.contiguous()) {
  const auto signs = [&](const at::Tensor& packed, double scale) {
    return Signs{packed.const_data_ptr<int32_t>(), packed.stride(0), packed.stride(1),
                 static_cast<float>(scale * sketch.scale)};
  };
  const int64_t positions = sketch.positions();
  const bool spatial = sketch.mixes_space();
  const int64_t features = sketch.rank * positions;  // entries of S2 in a row
  filters_ = {s1_.const_data_ptr<float>(),
              sketch.rank * sketch.inputs(),
              sketch.inputs(),
              positions,
              {},
              true};
  a_.signs = signs(u1_, sketch.u1_scale);
  b_.signs = signs(u2_, sketch.u2_scale);
  b_.taps = spatial;
  weights_ = {s2_.const_data_ptr<float>(),
              sketch.out_channels * features,
              spatial ? 1 : positions,
              features,
              {},
              !spatial};
}

TwoSidedConv Factors::forward(int64_t images, const float* bias) const {
  return {images,
          sketch_.groups,
          sketch_.in_channels,
          sketch_.out_channels,
          sketch_.positions(),
          {{sketch_.blocks * sketch_.rank, filters_, a_, sketch_.blocks, 1},
           {sketch_.blocks * sketch_.second_rank(), b_, weights_, 1, sketch_.blocks}},
          bias};
}

TwoSidedConv Factors::adjoint(int64_t images) const {
  return {images,
          sketch_.groups,
          sketch_.out_channels,
          sketch_.in_channels,
          sketch_.positions(),
          {{sketch_.blocks * sketch_.second_rank(), weights_, b_, sketch_.blocks, 1},
           {sketch_.blocks * sketch_.rank, a_, filters_, 1, sketch_.blocks}}};
}

TwoSidedGradient Factors::gradient(int64_t images, const ConvAxis& rows,
                                   const ConvAxis& columns) const {
  return {images,
          sketch_.groups,
          sketch_.blocks,
          sketch_.in_channels,
          sketch_.out_channels,
          rows,
          columns,
          {sketch_.blocks * sketch_.rank, a_, {}},
          {sketch_.blocks * sketch_.second_rank(), b_, {}}};
}

}  // namespace sketchlayers::cpu
