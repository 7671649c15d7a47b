// sk_weight and its adjoint on the CPU, by our own kernels but for float64.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "composite/composed.h"
#include "cpu/allocate.h"
#include "cpu/factors.h"
#include "cpu/panel_operands.h"
#include "cpu/panel_weight.h"
#include "cpu/weight.h"

namespace sketchlayers {
namespace {

// The packed signs as the kernels take them; keeps what they point into.
class WeightOperands {
 public:
  WeightOperands(const Sketch& sketch, const at::Tensor& u1, const at::Tensor& u2,
                 const SketchArguments& arguments)
      : shape{sketch.groups,
              sketch.out_channels,
              sketch.rank,
              sketch.second_rank(),
              sketch.mixes_space() ? sketch.inputs() : sketch.in_channels,
              sketch.mixes_space() ? 1 : sketch.positions()} {
    signs.a = keep(u1, sketch.scale * sketch.u1_scale);
    signs.b = keep(u2, sketch.scale * sketch.u2_scale);
    if (arguments.frame) signs.frame = keep(*arguments.frame, 1.0);
  }

  cpu::WeightShape shape;
  cpu::WeightSigns signs{};

 private:
  cpu::Signs keep(const at::Tensor& packed, double magnitude) {
    kept_.push_back(packed.contiguous());
    const at::Tensor& signs = kept_.back();
    return {signs.const_data_ptr<int32_t>(), signs.stride(0), signs.stride(1),
            static_cast<float>(magnitude)};
  }

  std::vector<at::Tensor> kept_;
};

bool by_panels(at::ScalarType type, const Sketch& sketch, const SketchArguments& arguments) {
  return sketch.mixes_space() && !arguments.frame && cpu::takes_panels(type, sketch);
}

at::Tensor sk_weight_cpu(const WeightCall& call) {
  const auto& [s1, s2, u1, u2] = call.tensors;
  const Sketch sketch = check_call(call);
  if (!computes_in_float(s1.scalar_type()) || sketch.blocks > 1) {
    return sk_weight_composed(call);
  }
  const at::Tensor weight =
      cpu::empty_result(sketch.weight_sizes(), s1.options(), at::MemoryFormat::Contiguous);
  const auto format = common_memory_format(s1, s1);
  if (by_panels(s1.scalar_type(), sketch, call.arguments)) {
    cpu::weight_by_panels(call.tensors, sketch, weight);
    return in_format(weight, format);
  }
  const WeightOperands operands(sketch, u1, u2, call.arguments);
  const at::Tensor first = s1.to(at::kFloat).contiguous();
  const at::Tensor second = s2.to(at::kFloat).contiguous();
  for_type(s1.scalar_type(), [&](auto zero) {
    cpu::form_weight(operands.shape, operands.signs, first.const_data_ptr<float>(),
                     second.const_data_ptr<float>(), weight.mutable_data_ptr<decltype(zero)>());
  });
  return in_format(weight, format);
}

WeightGradients sk_weight_backward_cpu(const WeightBackwardCall& call) {
  const at::Tensor& grad = call.grad;
  const Sketch sketch = check_call(call);
  if (!computes_in_float(grad.scalar_type()) || sketch.blocks > 1) {
    return sk_weight_composed_backward(call);
  }
  if (by_panels(grad.scalar_type(), sketch, call.arguments)) {
    return cpu::weight_by_panels_backward(grad, call.u1, call.u2, sketch);
  }
  const WeightOperands operands(sketch, call.u1, call.u2, call.arguments);
  const at::Tensor matrix = grad.contiguous();
  const auto options = grad.options().dtype(at::kFloat);
  const at::Tensor grad_s1 = at::empty(sketch.s1_sizes(), options);
  const at::Tensor grad_s2 = at::empty(sketch.s2_sizes(), options);
  for_type(grad.scalar_type(), [&](auto zero) {
    cpu::pull_back_weight(operands.shape, operands.signs, matrix.const_data_ptr<decltype(zero)>(),
                          grad_s1.mutable_data_ptr<float>(), grad_s2.mutable_data_ptr<float>());
  });
  return {grad_s1.to(grad.scalar_type()), grad_s2.to(grad.scalar_type())};
}

TORCH_LIBRARY_IMPL(sketchlayers, CPU, m) {
  m.impl("sk_weight", TORCH_FN(WeightCall::unpacked<sk_weight_cpu>));
  m.impl("sk_weight_backward", TORCH_FN(WeightBackwardCall::unpacked<sk_weight_backward_cpu>));
}

}  // namespace
}  // namespace sketchlayers
