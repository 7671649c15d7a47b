#include "cpu/factors.h"

namespace sketchlayers::cpu {

Factors::Factors(const at::Tensor& s1, const at::Tensor& s2, const at::Tensor& u1,
                 const at::Tensor& u2, const Sketch& sketch)
    : sketch_(sketch),
      s1_(s1.to(at::kFloat).contiguous()),
      s2_(s2.to(at::kFloat).contiguous()),
      u1_(u1.contiguous()),
      u2_(u2.contiguous()) {
  const auto signs = [&](const at::Tensor& packed, double scale) {
    return Signs{packed.const_data_ptr<int32_t>(), packed.stride(0), packed.stride(1),
                 static_cast<float>(scale * sketch.scale)};
  };
  output_signs_ = signs(u1_, sketch.u1_scale);
  input_signs_ = signs(u2_, sketch.u2_scale);
}

TwoSidedConv Factors::forward(int64_t images, const float* bias) const {
  const int64_t positions = sketch_.positions();
  const int64_t inputs = sketch_.inputs();
  const int64_t features = sketch_.rank * positions;
  return {images,
          sketch_.groups,
          sketch_.rank,
          sketch_.in_channels,
          sketch_.out_channels,
          positions,
          {s1(), sketch_.rank * inputs, inputs, positions},
          {s2(), sketch_.out_channels * features, features, positions},
          input_signs_,
          output_signs_,
          bias};
}

TwoSidedConv Factors::adjoint(int64_t images) const {
  const int64_t positions = sketch_.positions();
  const int64_t inputs = sketch_.inputs();
  const int64_t features = sketch_.rank * positions;
  return {images,
          sketch_.groups,
          sketch_.rank,
          sketch_.out_channels,
          sketch_.in_channels,
          positions,
          {s2(), sketch_.out_channels * features, positions, features},
          {s1(), sketch_.rank * inputs, positions, inputs},
          output_signs_,
          input_signs_,
          nullptr};
}

TwoSidedGradient Factors::gradient(int64_t images, const ConvAxis& rows,
                                   const ConvAxis& columns) const {
  return {images, sketch_.groups, sketch_.rank, sketch_.in_channels, sketch_.out_channels,
          rows,   columns,        input_signs_, output_signs_,       nullptr,
          nullptr};
}

}  // namespace sketchlayers::cpu
