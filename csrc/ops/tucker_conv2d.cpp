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
  TORCH_CHECK(input.dim() == 4 && input.sym_size(1) == channels, op,
              ": input must have shape (batch, ", channels, ", height, width) (got ",
              input.sym_sizes(), ")");
  check_operand(op, "input", input, factors.core);
  if (bias) {
    check_operand(op, "bias", *bias, factors.core);
    TORCH_CHECK(bias->dim() == 1 && bias->sym_size(0) == outputs, op, ": bias must have shape (",
                outputs, ") (got ", bias->sym_sizes(), ")");
  }
  tucker.output_sizes =
      conv_output_sizes(op, input, outputs, tucker.kernel_h, tucker.kernel_w, conv);
  return tucker;
}

at::Tensor tucker_conv2d_plain(const TuckerCall& call) {
  const auto& [inputs, core, outputs] = call.factors;
  const auto& conv = call.conv;
  const auto pointwise = [&](const at::Tensor& images, const at::Tensor& filter,
                             const std::optional<at::Tensor>& bias) {
    const std::array<int64_t, 2> ones{1, 1};
    const std::array<int64_t, 2> zeros{0, 0};
    return at::conv2d(images, filter, bias, ones, zeros, ones, conv.groups);
  };
  // On CPUs PyTorch's convolutions, those of depthwise filters above all, and all their gradients,
  // are several times faster in channels_last, which more than pays for two copies. Transforms know
  // no formats.
  const auto format = common_memory_format(call.input, core);
  const bool turns = call.input.is_cpu() && format == at::MemoryFormat::Contiguous &&
                     (inputs || outputs) && !under_transform({call.input}) &&
                     !call.input.key_set().has(c10::DispatchKey::FuncTorchBatched);
  const std::optional<at::Tensor> none;
  at::Tensor features = turns ? call.input.contiguous(at::MemoryFormat::ChannelsLast) : call.input;
  if (inputs) features = pointwise(features, *inputs, none);
  // A filter of one row or column in channels_last may have strides of which PyTorch's convolution
  // of float16 makes another filter (2.14, groups).
  const bool is_line = (core.sym_size(2) == 1) != (core.sym_size(3) == 1);
  features = at::conv2d_symint(
      features, is_line ? core.contiguous() : core, outputs ? none : call.bias,
      c10::fromIntArrayRefSlow(conv.stride), c10::fromIntArrayRefSlow(conv.padding),
      c10::fromIntArrayRefSlow(effective_dilation(conv, core)),
      is_depthwise(call.factors) ? core.sym_size(0) : c10::SymInt(conv.groups));
  if (outputs) features = pointwise(features, *outputs, call.bias);
  return turns ? features.contiguous() : features;
}

namespace {

double entries(const at::Tensor& filter) {
  return static_cast<double>(filter.sym_numel().guard_int(__FILE__, __LINE__));
}

// Multiply-adds of the chain, where all sizes are known.
std::optional<double> multiply_adds(const at::Tensor& input, const Tucker& tucker,
                                    const TuckerFactors& factors) {
  const auto pixels = [](const c10::SymInt& images, const c10::SymInt& rows,
                         const c10::SymInt& columns) -> std::optional<double> {
    const auto n = images.maybe_as_int(), h = rows.maybe_as_int(), w = columns.maybe_as_int();
    if (!n || !h || !w) return std::nullopt;
    return static_cast<double>(*n) * static_cast<double>(*h) * static_cast<double>(*w);
  };
  const auto& sizes = tucker.output_sizes;
  const auto before = pixels(sizes[0], input.sym_size(2), input.sym_size(3));
  const auto after = pixels(sizes[0], sizes[2], sizes[3]);
  if (!before || !after) return std::nullopt;
  double count = *after * entries(factors.core);
  if (factors.inputs) count += *before * entries(*factors.inputs);
  if (factors.outputs) count += *after * entries(*factors.outputs);
  return count;
}

std::optional<double> known_product(const c10::SymInt& a, const c10::SymInt& b) {
  const auto product = product_if_known(a, b);
  return product ? std::make_optional(static_cast<double>(*product)) : std::nullopt;
}

bool plans_fused(const at::Tensor& input, const Tucker& tucker, const TuckerFactors& factors,
                 bool training) {
  PlanProblem described;
  describe_call(described, input, factors.core, factors.core);
  const bool lowered = described.precision == Precision::kHalf;
  const bool is_bfloat16 =
      lowered && (input.scalar_type() == at::kBFloat16 ||
                  (input.scalar_type() == at::kFloat &&
                   at::autocast::get_autocast_dtype(input.device().type()) == at::kBFloat16));
  return plan_chain({described.processor, described.precision, is_bfloat16, training,
                     described.channels_last, tucker.depthwise, entries(factors.core),
                     multiply_adds(input, tucker, factors),
                     known_product(tucker.output_sizes[2], tucker.output_sizes[3])})
      .fused;
}

at::Tensor computed(const char* op, const TuckerCall& call, c10::string_view path) {
  TORCH_CHECK_VALUE(path == "auto" || path == "fused" || path == "plain", op,
                    ": path must be 'auto', 'fused' or 'plain' (got '", path, "')");
  const at::Tensor none;
  const auto& [inputs, core, outputs] = call.factors;
  const std::array<at::Tensor, 5> operands{call.input, inputs.value_or(none), core,
                                           outputs.value_or(none), call.bias.value_or(none)};
  const bool transformed = under_transform(operands);
  TORCH_CHECK_NOT_IMPLEMENTED(path != "fused" || !transformed, op,
                              ": torch.func and forward-mode derivatives need path 'auto' or "
                              "'plain' (got 'fused')");
  const Tucker tucker = check_call(call, op);
  const bool fused =
      path == "fused" || (path == "auto" && !transformed &&
                          plans_fused(call.input, tucker, call.factors, records(operands)));
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
  // vmap: the parts have batching rules, the whole has none.
  m.impl("tucker_conv2d", torch::dispatch(c10::DispatchKey::FuncTorchBatchedDecomposition,
                                          TORCH_FN(tucker_conv2d_composite)));
  m.impl("cp_conv2d", torch::dispatch(c10::DispatchKey::FuncTorchBatchedDecomposition,
                                      TORCH_FN(cp_conv2d_composite)));
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
