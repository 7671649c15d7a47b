#include "cpu/panel_linear.h"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "cpu/allocate.h"
#include "cpu/panel_operands.h"

namespace sketchlayers::cpu {
namespace {

// The factors and their signs as rows of a matrix.
struct LinearFactors {
  explicit LinearFactors(const SketchTensors& tensors)
      : s1(tensors.s1.contiguous()),
        s2(tensors.s2.contiguous()),
        u1(tensors.u1[0].contiguous()),
        u2(tensors.u2[0].contiguous()) {}

  at::Tensor s1, s2, u1, u2;
};

// Features of rows by two right sides.
std::array<at::Tensor, 2> features(const at::Tensor& rows, const RightSide& first,
                                   const RightSide& second, int64_t rank) {
  std::array<at::Tensor, 2> made;
  std::vector<Multiplication> all;
  const RightSide rights[2] = {first, second};
  for (size_t i = 0; i < 2; ++i) {
    made[i] = lined_up(rows.size(0), rank, rows.options());
    all.push_back({{term(rows, rights[i])}, rows.size(0), rank, nullptr, result(made[i])});
  }
  multiply(all);
  return made;
}

// out = scale * left^T right for rows of both.
void inner_product(const at::Tensor& left, const at::Tensor& right, double scale,
                   const at::Tensor& out) {
  multiply({{{term(left_side(left.t()), numbers_of(right), scale)},
             left.size(1),
             right.size(1),
             nullptr,
             result(out)}});
}

}  // namespace

void linear_by_panels(const at::Tensor& x, const SketchTensors& tensors, const Sketch& sketch,
                      const float* bias, const at::Tensor& y) {
  const LinearFactors factors(tensors);
  const auto [filtered, mixed] = features(as_left_side(x), numbers_of(factors.s1, true),
                                          signs_of(factors.u2, true), sketch.rank);
  const double scale = sketch.scale * sketch.u1_scale;
  multiply({{{term(filtered, signs_of(factors.u1), scale),
              term(mixed, numbers_of(factors.s2, true), scale)},
             x.size(0),
             sketch.out_channels,
             bias,
             result(y)}});
}

LayerGradients linear_by_panels_backward(const at::Tensor& dy, const at::Tensor& x,
                                         const SketchTensors& tensors, const Sketch& sketch,
                                         const std::array<bool, 3>& wanted) {
  const LinearFactors factors(tensors);
  const double scale = sketch.scale * sketch.u1_scale;
  const int64_t rank = sketch.rank;
  LayerGradients grads{x.new_empty({0}), tensors.s1.new_empty({0}), tensors.s2.new_empty({0})};
  auto& [grad_input, grad_s1, grad_s2] = grads;
  if (wanted[0] || wanted[1]) {
    const auto [filtered, mixed] =
        features(as_left_side(dy), signs_of(factors.u1, true), numbers_of(factors.s2), rank);
    if (wanted[0]) {
      grad_input = empty_result(x.sizes(), x.options(), at::MemoryFormat::Contiguous);
      multiply({{{term(filtered, numbers_of(factors.s1), scale),
                  term(mixed, signs_of(factors.u2), scale)},
                 x.size(0),
                 sketch.in_channels,
                 nullptr,
                 result(grad_input)}});
    }
    if (wanted[1]) {
      grad_s1 = at::empty({rank, sketch.in_channels}, x.options());
      inner_product(filtered, x, scale, grad_s1);
    }
  }
  if (wanted[2]) {
    const at::Tensor mixed = lined_up(x.size(0), rank, x.options());
    multiply({{{term(as_left_side(x), signs_of(factors.u2, true))},
               x.size(0),
               rank,
               nullptr,
               result(mixed)}});
    grad_s2 = at::empty({sketch.out_channels, rank}, x.options());
    inner_product(mixed, dy, scale, grad_s2.t());
  }
  return grads;
}

}  // namespace sketchlayers::cpu
