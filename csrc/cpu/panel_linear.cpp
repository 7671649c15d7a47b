#include "cpu/panel_linear.h"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "cpu/allocate.h"
#include "cpu/panels.h"
#include "geometry.h"

namespace sketchlayers::cpu {
namespace {

// S1, S2 and the signs as right sides of products.
class RightSides {
 public:
  RightSides(const SketchTensors& tensors, const Sketch& sketch)
      : sketch_(sketch),
        s1_(tensors.s1.contiguous()),
        s2_(tensors.s2.contiguous()),
        u1_(tensors.u1.contiguous()),
        u2_(tensors.u2.contiguous()) {}

  RightSide s1() const { return {numbers(s1_), nullptr, sketch_.in_channels, false}; }
  RightSide s1_transposed() const { return {numbers(s1_), nullptr, sketch_.in_channels, true}; }
  RightSide s2() const { return {numbers(s2_), nullptr, sketch_.rank, false}; }
  RightSide s2_transposed() const { return {numbers(s2_), nullptr, sketch_.rank, true}; }
  RightSide u1() const { return {nullptr, bits(u1_), u1_.size(-1), false}; }
  RightSide u1_transposed() const { return {nullptr, bits(u1_), u1_.size(-1), true}; }
  RightSide u2() const { return {nullptr, bits(u2_), u2_.size(-1), false}; }
  RightSide u2_transposed() const { return {nullptr, bits(u2_), u2_.size(-1), true}; }

 private:
  static const c10::BFloat16* numbers(const at::Tensor& t) {
    return t.const_data_ptr<c10::BFloat16>();
  }
  static const int32_t* bits(const at::Tensor& t) { return t.const_data_ptr<int32_t>(); }

  const Sketch& sketch_;
  at::Tensor s1_, s2_, u1_, u2_;
};

// A matrix whose rows begin with a line, and end with one, of zeros after the last column.
at::Tensor lined_up(int64_t rows, int64_t columns, int64_t more, const at::TensorOptions& options) {
  const int64_t width = ceil_divide(columns, kLineNumbers) * kLineNumbers;
  const at::Tensor whole = at::empty({rows, width + more}, options);
  auto* data = whole.mutable_data_ptr<c10::BFloat16>();
  for (int64_t i = 0; width > columns && i < rows; ++i) {
    std::fill_n(data + i * (width + more) + columns, width - columns, c10::BFloat16(0));
  }
  return whole.narrow(1, 0, columns);
}

// Rows as products read them fast: by whole lines, and not so far apart that those of a tile share
// a few lines of the first-level cache.
at::Tensor as_left_side(const at::Tensor& rows) {
  constexpr int64_t kFewRows = 16;
  const int64_t columns = rows.size(1);
  const bool shares = rows.size(0) >= kFewRows && columns % (16 * kLineNumbers) == 0;
  if (columns % kLineNumbers == 0 && !shares) return rows;
  const at::Tensor result =
      lined_up(rows.size(0), columns, shares ? kLineNumbers : 0, rows.options());
  return result.copy_(rows);
}

Term term(const at::Tensor& left, int64_t depth, const RightSide& right) {
  return {left.const_data_ptr<c10::BFloat16>(), left.stride(0), depth, right};
}

Result result(const at::Tensor& matrix) {
  return {matrix.mutable_data_ptr<c10::BFloat16>(), matrix.stride(0), matrix.stride(1)};
}

// Features of rows by two right sides.
std::array<at::Tensor, 2> features(const at::Tensor& rows, const RightSide& first,
                                   const RightSide& second, int64_t rank) {
  std::array<at::Tensor, 2> made;
  std::vector<Multiplication> all;
  const RightSide rights[2] = {first, second};
  for (size_t i = 0; i < 2; ++i) {
    made[i] = lined_up(rows.size(0), rank, 0, rows.options());
    all.push_back(
        {{term(rows, rows.size(1), rights[i])}, rows.size(0), rank, 1, nullptr, result(made[i])});
  }
  multiply(all);
  return made;
}

// out = scale * left^T right for rows of both.
void inner_product(const at::Tensor& left, const at::Tensor& right, double scale,
                   const at::Tensor& out) {
  const int64_t rows = left.size(0);
  const int64_t columns = left.size(1);
  const at::Tensor turned = lined_up(columns, rows, 0, left.options());
  turned.copy_(left.t());
  const RightSide side{right.const_data_ptr<c10::BFloat16>(), nullptr, right.stride(0), false};
  multiply({{{term(turned, rows, side)}, columns, right.size(1), scale, nullptr, result(out)}});
}

}  // namespace

bool takes_panels(at::ScalarType type, const Sketch& sketch) {
  return type == at::kBFloat16 && sketch.blocks == 1 && multiplies_bfloat16();
}

void linear_by_panels(const at::Tensor& x, const SketchTensors& tensors, const Sketch& sketch,
                      const float* bias, const at::Tensor& y) {
  const RightSides factors(tensors, sketch);
  const auto [filtered, mixed] =
      features(as_left_side(x), factors.s1_transposed(), factors.u2_transposed(), sketch.rank);
  const int64_t rank = sketch.rank;
  multiply({{{term(filtered, rank, factors.u1()), term(mixed, rank, factors.s2_transposed())},
             x.size(0),
             sketch.out_channels,
             sketch.scale * sketch.u1_scale,
             bias,
             result(y)}});
}

LayerGradients linear_by_panels_backward(const at::Tensor& dy, const at::Tensor& x,
                                         const SketchTensors& tensors, const Sketch& sketch,
                                         const std::array<bool, 3>& wanted) {
  const RightSides factors(tensors, sketch);
  const double scale = sketch.scale * sketch.u1_scale;
  const int64_t rank = sketch.rank;
  LayerGradients grads{x.new_empty({0}), tensors.s1.new_empty({0}), tensors.s2.new_empty({0})};
  auto& [grad_input, grad_s1, grad_s2] = grads;
  if (wanted[0] || wanted[1]) {
    const auto [filtered, mixed] =
        features(as_left_side(dy), factors.u1_transposed(), factors.s2(), rank);
    if (wanted[0]) {
      grad_input = empty_result(x.sizes(), x.options(), at::MemoryFormat::Contiguous);
      multiply({{{term(filtered, rank, factors.s1()), term(mixed, rank, factors.u2())},
                 x.size(0),
                 sketch.in_channels,
                 scale,
                 nullptr,
                 result(grad_input)}});
    }
    if (wanted[1]) {
      grad_s1 = at::empty({rank, sketch.in_channels}, x.options());
      inner_product(filtered, x, scale, grad_s1);
    }
  }
  if (wanted[2]) {
    const at::Tensor mixed = lined_up(x.size(0), rank, 0, x.options());
    const at::Tensor rows = as_left_side(x);
    multiply({{{term(rows, x.size(1), factors.u2_transposed())},
               x.size(0),
               rank,
               1,
               nullptr,
               result(mixed)}});
    grad_s2 = at::empty({sketch.out_channels, rank}, x.options());
    inner_product(mixed, dy, scale, grad_s2.t());
  }
  return grads;
}

}  // namespace sketchlayers::cpu
