#include "ops/tucker_conv2d.h"

#include <ATen/autocast_mode.h>
#include <ATen/ops/conv2d.h>
#include <torch/library.h>

#include "ops/checks.h"
#include "ops/operands.h"
#include "ops/operator.h"
#include "ops/sketch.h"
#include "plan/chain_plan.h"

namespace sketchlayers {

bool is_depthwise(const TuckerFactors& factors) {
  const auto& [inputs, core, outputs] = factors;
  return inputs && outputs && core.sym_size(1) == 1 && core.sym_size(0) == inputs->sym_size(0);
}

at::Tensor tucker_conv2d_fused(const TuckerCall& call) {
  static const auto op = find_operator<TuckerCall>();
  const auto& [stride, padding, dilation, groups] = call.conv;
  return op.call(call.input, call.factors.inputs, call.factors.core, call.factors.outputs,
                 call.bias, stride, padding, dilation, groups);
}

namespace {

int64_t fixed_size(const at::Tensor& tensor, int64_t dim) {
  return tensor.sym_size(dim).guard_int(__FILE__, __LINE__);
}

void check_filter(const char* op, const char* name, const at::Tensor& filter) {
  TORCH_CHECK(filter.dim() == 4, op, ": ", name, " must have 4 dimensions (got shape ",
              filter.sym_sizes(), ")");
  check_floating(op, name, filter);
  for (int64_t axis = 0; axis < 4; ++axis) {
    TORCH_CHECK(fixed_size(filter, axis) >= 1, op, ": ", name,
                " must have sizes of at least 1 (got shape ", filter.sym_sizes(), ")");
  }
}

// A factor that is there: (groups * rows, columns, 1, 1); `columns` 0 stands for any number.
void check_factor(const char* op, const char* name, const at::Tensor& factor, int64_t groups,
                  int64_t columns, const at::Tensor& core) {
  check_filter(op, name, factor);
  check_operand(op, name, factor, core);
  TORCH_CHECK(fixed_size(factor, 2) == 1 && fixed_size(factor, 3) == 1, op, ": ", name,
              " must be a filter of size 1x1 (got shape ", factor.sym_sizes(), ")");
  TORCH_CHECK(fixed_size(factor, 0) % groups == 0, op, ": ", name,
              " must have a multiple of the groups as its first size (got shape ",
              factor.sym_sizes(), " and groups=", groups, ")");
  TORCH_CHECK(columns == 0 || fixed_size(factor, 1) == columns, op, ": ", name, " must take the ",
              columns, " features of a group that come before it (got shape ", factor.sym_sizes(),
              ")");
}

void check_images(const char* op, const at::Tensor& input, const std::optional<at::Tensor>& bias,
                  const at::Tensor& core, int64_t channels, int64_t outputs) {
  TORCH_CHECK(input.dim() == 4 && input.sym_size(1) == channels, op,
              ": input must have shape (batch, ", channels, ", height, width) (got ",
              input.sym_sizes(), ")");
  check_operand(op, "input", input, core);
  if (!bias) return;
  check_operand(op, "bias", *bias, core);
  TORCH_CHECK(bias->dim() == 1 && bias->sym_size(0) == outputs, op, ": bias must have shape (",
              outputs, ") (got ", bias->sym_sizes(), ")");
}

Tucker check_factors(const char* op, const TuckerFactors& factors, const ConvArguments& conv) {
  const auto& [inputs, core, outputs] = factors;
  check_filter(op, "core", core);
  const int64_t groups = conv.groups;
  TORCH_CHECK_VALUE(groups >= 1, op, ": groups must be at least 1 (got groups=", groups, ")");
  TORCH_CHECK(fixed_size(core, 0) % groups == 0, op,
              ": core must have a multiple of the groups as its first size (got shape ",
              core.sym_sizes(), " and groups=", groups, ")");
  Tucker tucker;
  tucker.groups = groups;
  tucker.output_rank = fixed_size(core, 0) / groups;
  tucker.input_rank = fixed_size(core, 1);
  tucker.kernel_h = fixed_size(core, 2);
  tucker.kernel_w = fixed_size(core, 3);
  tucker.in_channels = tucker.input_rank;
  tucker.out_channels = tucker.output_rank;
  tucker.depthwise = false;
  if (inputs) {
    check_factor(op, "inputs", *inputs, groups, 0, core);
    const int64_t rank = fixed_size(*inputs, 0) / groups;
    tucker.depthwise = is_depthwise(factors);
    TORCH_CHECK(tucker.depthwise || rank == tucker.input_rank, op,
                ": core must take the features that inputs make (got shapes ", core.sym_sizes(),
                " and ", inputs->sym_sizes(), ", groups=", groups, ")");
    tucker.input_rank = rank;
    tucker.in_channels = fixed_size(*inputs, 1);
  }
  if (outputs) {
    check_factor(op, "outputs", *outputs, groups, tucker.output_rank, core);
    tucker.out_channels = fixed_size(*outputs, 0) / groups;
  }
  return tucker;
}

}  // namespace

Tucker check_call(const TuckerCall& call, const char* op) {
  const auto& [input, factors, bias, conv] = call;
  Tucker tucker = check_factors(op, factors, conv);
  const int64_t channels = tucker.groups * tucker.in_channels;
  const int64_t outputs = tucker.groups * tucker.out_channels;
  check_conv_arguments(op, conv, channels, outputs);
  check_images(op, input, bias, factors.core, channels, outputs);
  tucker.output_sizes =
      conv_output_sizes(op, input, outputs, tucker.kernel_h, tucker.kernel_w, conv);
  return tucker;
}

namespace {

// compute(images, core) by PyTorch's convolutions. On CPUs those of depthwise filters above all,
// and all their gradients, are several times faster in channels_last, which more than pays for two
// copies. Transforms know no formats.
template <typename Compute>
at::Tensor in_faster_format(const at::Tensor& input, const at::Tensor& core,
                            const Compute& compute) {
  const bool turns =
      input.is_cpu() && common_memory_format(input, core) == at::MemoryFormat::Contiguous &&
      !under_transform({input}) && !input.key_set().has(c10::DispatchKey::FuncTorchBatched);
  if (!turns) return compute(input);
  return compute(input.contiguous(at::MemoryFormat::ChannelsLast)).contiguous();
}

at::Tensor convolved(const at::Tensor& images, const at::Tensor& filter,
                     const std::optional<at::Tensor>& bias, const ConvArguments& conv,
                     const c10::SymInt& groups) {
  // A filter of one row or column in channels_last may have strides of which PyTorch's convolution
  // of float16 makes another filter, in groups, and with which others refuse to make its gradient
  // (2.14).
  const bool is_line = (filter.sym_size(2) == 1) != (filter.sym_size(3) == 1);
  const bool lies_anew = is_line && (groups != 1 || records({filter}));
  return at::conv2d_symint(images, lies_anew ? filter.contiguous() : filter, bias,
                           c10::fromIntArrayRefSlow(conv.stride),
                           c10::fromIntArrayRefSlow(conv.padding),
                           c10::fromIntArrayRefSlow(effective_dilation(conv, filter)), groups);
}

}  // namespace

at::Tensor tucker_conv2d_plain(const TuckerCall& call) {
  const auto& [inputs, core, outputs] = call.factors;
  const auto& conv = call.conv;
  const std::optional<at::Tensor> none;
  const auto compute = [&](const at::Tensor& images) {
    at::Tensor features = inputs ? convolved(images, *inputs, none, {}, conv.groups) : images;
    features = convolved(features, core, outputs ? none : call.bias, conv,
                         is_depthwise(call.factors) ? core.sym_size(0) : c10::SymInt(conv.groups));
    return outputs ? convolved(features, *outputs, call.bias, {}, conv.groups) : features;
  };
  if (!inputs && !outputs) return compute(call.input);
  return in_faster_format(call.input, core, compute);
}

namespace {

double entries(const at::Tensor& filter) {
  return static_cast<double>(filter.sym_numel().guard_int(__FILE__, __LINE__));
}

// Entries of a filter times the pixels that it makes, where all sizes are known.
std::optional<double> multiply_adds(const at::Tensor& filter, const c10::SymInt& images,
                                    const c10::SymInt& rows, const c10::SymInt& columns) {
  const auto n = images.maybe_as_int(), h = rows.maybe_as_int(), w = columns.maybe_as_int();
  if (!n || !h || !w) return std::nullopt;
  return static_cast<double>(*n) * static_cast<double>(*h) * static_cast<double>(*w) *
         entries(filter);
}

std::optional<double> multiply_adds(const at::Tensor& input, const Tucker& tucker,
                                    const TuckerFactors& factors) {
  const auto& sizes = tucker.output_sizes;
  const auto after = [&](const at::Tensor& filter) {
    return multiply_adds(filter, sizes[0], sizes[2], sizes[3]);
  };
  auto count = after(factors.core);
  const auto add = [&count](const std::optional<double>& more) {
    count = count && more ? std::make_optional(*count + *more) : std::nullopt;
  };
  if (factors.inputs) {
    add(multiply_adds(*factors.inputs, sizes[0], input.sym_size(2), input.sym_size(3)));
  }
  if (factors.outputs) add(after(*factors.outputs));
  return count;
}

std::optional<double> known_product(const c10::SymInt& a, const c10::SymInt& b) {
  const auto product = product_if_known(a, b);
  return product ? std::make_optional(static_cast<double>(*product)) : std::nullopt;
}

// What the planner must know of a call beside what it computes.
ChainProblem problem_of(const at::Tensor& input, const at::Tensor& core, at::TensorList operands) {
  PlanProblem described;
  describe_call(described, input, core, core);
  ChainProblem problem{};
  problem.processor = described.processor;
  problem.precision = described.precision;
  problem.training = records(operands);
  problem.channels_last = described.channels_last;
  problem.core = entries(core);
  return problem;
}

void check_path(const char* op, c10::string_view path, bool transformed) {
  TORCH_CHECK_VALUE(path == "auto" || path == "fused" || path == "plain", op,
                    ": path must be 'auto', 'fused' or 'plain' (got '", path, "')");
  TORCH_CHECK_NOT_IMPLEMENTED(path != "fused" || !transformed, op,
                              ": torch.func and forward-mode derivatives need path 'auto' or "
                              "'plain' (got 'fused')");
}

at::Tensor computed(const char* op, const TuckerCall& call, c10::string_view path) {
  const at::Tensor none;
  const auto& [inputs, core, outputs] = call.factors;
  const std::array<at::Tensor, 5> operands{call.input, inputs.value_or(none), core,
                                           outputs.value_or(none), call.bias.value_or(none)};
  const bool transformed = under_transform(operands);
  check_path(op, path, transformed);
  const Tucker tucker = check_call(call, op);
  const auto plans_fused = [&] {
    ChainProblem problem = problem_of(call.input, core, operands);
    problem.factors = inputs || outputs;
    problem.depthwise = tucker.depthwise;
    problem.multiply_adds = multiply_adds(call.input, tucker, call.factors);
    problem.pixels = known_product(tucker.output_sizes[2], tucker.output_sizes[3]);
    return plan_chain(problem).fused;
  };
  const bool fused = path == "fused" || (path == "auto" && !transformed && plans_fused());
  return fused ? tucker_conv2d_fused(call) : tucker_conv2d_plain(call);
}

// With a batch axis for `input` where it has none, which `compute` sees.
template <typename Compute>
at::Tensor batched(const char* op, const at::Tensor& input, const Compute& compute) {
  TORCH_CHECK(input.dim() == 3 || input.dim() == 4, op,
              ": input must have shape (batch, channels, height, width), or no batch dimension "
              "(got ",
              input.sym_sizes(), ")");
  if (input.dim() == 4) return compute(input);
  return compute(input.unsqueeze(0)).squeeze(0);
}

at::Tensor images_computed(const char* op, const at::Tensor& input, const TuckerFactors& factors,
                           const std::optional<at::Tensor>& bias, const ConvArguments& conv,
                           c10::string_view path) {
  return batched(op, input, [&](const at::Tensor& images) {
    return computed(op, {images, factors, bias, conv}, path);
  });
}

at::Tensor tucker_conv2d_composite(const at::Tensor& input, const std::optional<at::Tensor>& inputs,
                                   const at::Tensor& core, const std::optional<at::Tensor>& outputs,
                                   const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                                   at::IntArrayRef padding, at::IntArrayRef dilation,
                                   int64_t groups, c10::string_view path) {
  return images_computed("tucker_conv2d", input, {inputs, core, outputs}, bias,
                         {stride.vec(), padding.vec(), dilation.vec(), groups}, path);
}

// The depthwise filters of both axes are multiplied out: a pass over the features fewer.
at::Tensor cp_conv2d_composite(const at::Tensor& input, const at::Tensor& inputs,
                               const at::Tensor& rows, const at::Tensor& columns,
                               const at::Tensor& outputs, const std::optional<at::Tensor>& bias,
                               at::IntArrayRef stride, at::IntArrayRef padding,
                               at::IntArrayRef dilation, int64_t groups, c10::string_view path) {
  constexpr const char* kName = "cp_conv2d";
  check_filter(kName, "rows", rows);
  check_filter(kName, "columns", columns);
  const auto has = [&](const at::Tensor& filter, int64_t axis) {
    return fixed_size(filter, 0) == fixed_size(rows, 0) && fixed_size(filter, 1) == 1 &&
           fixed_size(filter, axis) == 1;
  };
  TORCH_CHECK(has(rows, 3) && has(columns, 2), kName,
              ": rows and columns must have shapes (R, 1, h, 1) and (R, 1, 1, w) (got ",
              rows.sym_sizes(), " and ", columns.sym_sizes(), ")");
  check_operand(kName, "columns", columns, rows);
  const at::Tensor core = rows * columns;
  return images_computed(kName, input, {inputs, core, outputs}, bias,
                         {stride.vec(), padding.vec(), dilation.vec(), groups}, path);
}

// The convolution that has the arguments of another along one axis alone.
ConvArguments along(const ConvArguments& conv, size_t axis) {
  ConvArguments own;
  own.stride[axis] = conv.stride[axis];
  own.padding[axis] = conv.padding[axis];
  own.dilation[axis] = conv.dilation[axis];
  own.groups = conv.groups;
  return own;
}

void check_low_rank(const char* op, const at::Tensor& vertical, const at::Tensor& horizontal,
                    int64_t groups) {
  check_filter(op, "vertical", vertical);
  check_filter(op, "horizontal", horizontal);
  check_operand(op, "horizontal", horizontal, vertical);
  TORCH_CHECK_VALUE(groups >= 1, op, ": groups must be at least 1 (got groups=", groups, ")");
  const int64_t rank = fixed_size(vertical, 0) / groups;
  TORCH_CHECK(fixed_size(vertical, 3) == 1 && fixed_size(horizontal, 2) == 1 &&
                  fixed_size(vertical, 0) == rank * groups &&
                  fixed_size(horizontal, 0) % groups == 0 && fixed_size(horizontal, 1) == rank,
              op,
              ": vertical and horizontal must have shapes (groups * R, S, h, 1) and "
              "(groups * T, R, 1, w) (got ",
              vertical.sym_sizes(), ", ", horizontal.sym_sizes(), " and groups=", groups, ")");
}

at::Tensor low_rank_computed(const char* op, const at::Tensor& input, const at::Tensor& vertical,
                             const at::Tensor& horizontal, const std::optional<at::Tensor>& bias,
                             const ConvArguments& conv, c10::string_view path) {
  const std::array<at::Tensor, 4> operands{input, vertical, horizontal,
                                           bias.value_or(at::Tensor())};
  const bool transformed = under_transform(operands);
  check_path(op, path, transformed);
  check_low_rank(op, vertical, horizontal, conv.groups);
  const int64_t channels = conv.groups * fixed_size(vertical, 1);
  const int64_t outputs = fixed_size(horizontal, 0);
  check_conv_arguments(op, conv, channels, outputs);
  check_images(op, input, bias, vertical, channels, outputs);
  const auto sizes = conv_output_sizes(op, input, outputs, fixed_size(vertical, 2),
                                       fixed_size(horizontal, 3), conv);
  const auto plans_fused = [&] {
    ChainProblem problem = problem_of(input, vertical, operands);
    const auto first = multiply_adds(vertical, sizes[0], sizes[2], input.sym_size(3));
    const auto second = multiply_adds(horizontal, sizes[0], sizes[2], sizes[3]);
    if (first && second) problem.multiply_adds = *first + *second;
    problem.pixels = known_product(sizes[2], sizes[3]);
    return plan_chain(problem).fused;
  };
  const ConvArguments rows = along(conv, 0);
  const ConvArguments columns = along(conv, 1);
  const std::optional<at::Tensor> none;
  if (path == "fused" || (path == "auto" && !transformed && plans_fused())) {
    const at::Tensor features = tucker_conv2d_fused({input, {none, vertical, none}, none, rows});
    return tucker_conv2d_fused({features, {none, horizontal, none}, bias, columns});
  }
  return in_faster_format(input, vertical, [&](const at::Tensor& images) {
    return convolved(convolved(images, vertical, none, rows, conv.groups), horizontal, bias,
                     columns, conv.groups);
  });
}

at::Tensor low_rank_conv2d_composite(const at::Tensor& input, const at::Tensor& vertical,
                                     const at::Tensor& horizontal,
                                     const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                                     at::IntArrayRef padding, at::IntArrayRef dilation,
                                     int64_t groups, c10::string_view path) {
  constexpr const char* kName = "low_rank_conv2d";
  return batched(kName, input, [&](const at::Tensor& images) {
    return low_rank_computed(kName, images, vertical, horizontal, bias,
                             {stride.vec(), padding.vec(), dilation.vec(), groups}, path);
  });
}

TORCH_LIBRARY_FRAGMENT(sketchlayers, m) {
  m.def(
      "tucker_conv2d(Tensor input, Tensor? inputs, Tensor core, Tensor? outputs,"
      " Tensor? bias=None, int[2] stride=1, int[2] padding=0, int[2] dilation=1, int groups=1, *,"
      " str path='auto') -> Tensor",
      TORCH_FN(tucker_conv2d_composite), {at::Tag::pt2_compliant_tag});
  m.def(
      "cp_conv2d(Tensor input, Tensor inputs, Tensor rows, Tensor columns, Tensor outputs,"
      " Tensor? bias=None, int[2] stride=1, int[2] padding=0, int[2] dilation=1, int groups=1, *,"
      " str path='auto') -> Tensor",
      TORCH_FN(cp_conv2d_composite), {at::Tag::pt2_compliant_tag});
  m.def(
      "low_rank_conv2d(Tensor input, Tensor vertical, Tensor horizontal, Tensor? bias=None,"
      " int[2] stride=1, int[2] padding=0, int[2] dilation=1, int groups=1, *, str path='auto')"
      " -> Tensor",
      TORCH_FN(low_rank_conv2d_composite), {at::Tag::pt2_compliant_tag});
  // vmap: the parts have batching rules, the whole has none.
  m.impl("tucker_conv2d", torch::dispatch(c10::DispatchKey::FuncTorchBatchedDecomposition,
                                          TORCH_FN(tucker_conv2d_composite)));
  m.impl("cp_conv2d", torch::dispatch(c10::DispatchKey::FuncTorchBatchedDecomposition,
                                      TORCH_FN(cp_conv2d_composite)));
  m.impl("low_rank_conv2d", torch::dispatch(c10::DispatchKey::FuncTorchBatchedDecomposition,
                                            TORCH_FN(low_rank_conv2d_composite)));
  m.def(
      "tucker_conv2d_fused(Tensor input, Tensor? inputs, Tensor core, Tensor? outputs,"
      " Tensor? bias=None, int[2] stride=1, int[2] padding=0, int[2] dilation=1, int groups=1)"
      " -> Tensor",
      {at::Tag::pt2_compliant_tag});
}

}  // namespace

at::Tensor tucker_conv2d(const at::Tensor& input, const TuckerFactors& factors,
                         const std::optional<at::Tensor>& bias, const ConvArguments& conv,
                         const std::string& path) {
  static const auto op = find_operator<decltype(tucker_conv2d_composite)>("tucker_conv2d");
  return op.call(input, factors.inputs, factors.core, factors.outputs, bias, conv.stride,
                 conv.padding, conv.dilation, conv.groups, path);
}

}  // namespace sketchlayers
