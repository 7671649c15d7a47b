#include "cpu/panel_weight.h"

#include <ATen/ops/empty.h>

#include "cpu/panel_operands.h"
#include "ops/sign_matrix.h"

namespace sketchlayers::cpu {

void weight_by_panels(const SketchTensors& tensors, const Sketch& sketch,
                      const at::Tensor& weight) {
  const int64_t outputs = sketch.out_channels;
  const at::Tensor s1 = tensors.s1.contiguous().view({sketch.rank, -1});
  const at::Tensor s2 = tensors.s2.contiguous().view({outputs, -1});
  const at::Tensor a = unpack_signs(tensors.u1[0], outputs, 0, s1.scalar_type());
  const at::Tensor b = tensors.u2[0].contiguous();
  const at::Tensor matrix = weight.view({outputs, -1});
  multiply({{{term(left_side(a.t()), numbers_of(s1), sketch.scale * sketch.u1_scale),
              term(left_side(s2), signs_of(b), sketch.scale * sketch.u2_scale)},
             outputs,
             matrix.size(1),
             nullptr,
             result(matrix)}});
}

WeightGradients weight_by_panels_backward(const at::Tensor& grad, const at::Tensor& u1,
                                          const at::Tensor& u2, const Sketch& sketch) {
  const int64_t outputs = sketch.out_channels;
  const at::Tensor matrix = grad.contiguous().view({outputs, -1});
  const at::Tensor a = left_side(unpack_signs(u1[0], outputs, 0, grad.scalar_type()));
  const at::Tensor b = u2[0].contiguous();
  const at::Tensor grad_s1 = at::empty(sketch.s1_sizes(), matrix.options());
  const at::Tensor grad_s2 = at::empty(sketch.s2_sizes(), matrix.options());
  multiply({{{term(a, numbers_of(matrix), sketch.scale * sketch.u1_scale)},
             sketch.rank,
             matrix.size(1),
             nullptr,
             result(grad_s1.view({sketch.rank, -1}))},
            {{term(as_left_side(matrix), signs_of(b, true), sketch.scale * sketch.u2_scale)},
             outputs,
             sketch.second_rank(),
             nullptr,
             result(grad_s2.view({outputs, -1}))}});
  return {grad_s1, grad_s2};
}

}  // namespace sketchlayers::cpu
