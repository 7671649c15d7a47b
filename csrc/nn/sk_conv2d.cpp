#include "nn/sk_conv2d.h"

#include <ATen/ops/conv2d.h>
#include <ATen/ops/pad.h>

#include <array>

#include "ops/benchmark.h"
#include "ops/operands.h"
#include "ops/sk_conv2d.h"
#include "plan/plan.h"

namespace sketchlayers::nn {
namespace {

constexpr const char* kOwner = "SKConv2d";

struct Sides {
  int64_t before;
  int64_t after;
};

// Padding of height and of width.
std::array<Sides, 2> padding_amounts(const SKConv2dOptions& options) {
  std::array<Sides, 2> amounts{};
  const auto* numbers = std::get_if<torch::ExpandingArray<2>>(&options.padding());
  const bool same = std::holds_alternative<torch::enumtype::kSame>(options.padding());
  for (size_t axis = 0; axis < 2; ++axis) {
    if (numbers) {
      amounts[axis] = {(**numbers)[axis], (**numbers)[axis]};
    } else if (same) {
      const int64_t total = (*options.dilation())[axis] * ((*options.kernel_size())[axis] - 1);
      amounts[axis] = {total / 2, total - total / 2};
    }
  }
  return amounts;
}

struct Padded {
  at::Tensor input;
  std::vector<int64_t> padding;
};

// Pads as the operator cannot; what is left to it are zeros, as many on either side.
Padded pad(const SKConv2dOptions& options, const at::Tensor& input) {
  const auto [height, width] = padding_amounts(options);
  const std::vector<int64_t> sides{width.before, width.after, height.before, height.after};
  const auto& mode = options.padding_mode();
  const auto padded = [&](const char* how) { return Padded{at::pad(input, sides, how), {0, 0}}; };
  if (std::holds_alternative<torch::enumtype::kReflect>(mode)) return padded("reflect");
  if (std::holds_alternative<torch::enumtype::kReplicate>(mode)) return padded("replicate");
  if (std::holds_alternative<torch::enumtype::kCircular>(mode)) return padded("circular");
  const Padded symmetric{input, {height.before, width.before}};
  if (height.before == height.after && width.before == width.after) return symmetric;
  // "same" with an even kernel
  const std::vector<int64_t> rest{0, width.after - width.before, 0, height.after - height.before};
  return {at::pad(input, rest, "constant"), symmetric.padding};
}

int64_t output_size(const SKConv2dOptions& options, size_t axis, int64_t size) {
  const Sides padding = padding_amounts(options)[axis];
  const int64_t extent = (*options.dilation())[axis] * ((*options.kernel_size())[axis] - 1) + 1;
  const int64_t padded = size + padding.before + padding.after;
  return padded < extent || padded > kLargestConvSize
             ? 0
             : (padded - extent) / (*options.stride())[axis] + 1;
}

ConvArguments conv_arguments(const SKConv2dOptions& options, std::vector<int64_t> padding) {
  const auto &stride = *options.stride(), &dilation = *options.dilation();
  return {{stride.begin(), stride.end()},
          std::move(padding),
          {dilation.begin(), dilation.end()},
          options.groups()};
}

}  // namespace

LayerSizes SKConv2dImpl::checked_sizes(const SKConv2dOptions& options) {
  const int64_t groups = options.groups();
  check_in_range(kOwner, "in_channels", options.in_channels(), 1, kLargestConvSize);
  check_in_range(kOwner, "out_channels", options.out_channels(), 1, kLargestConvSize);
  check_at_least(kOwner, "groups", groups, 1);
  TORCH_CHECK_VALUE(options.in_channels() % groups == 0, kOwner,
                    ": in_channels must be divisible by groups (got in_channels=",
                    options.in_channels(), ", groups=", groups, ")");
  TORCH_CHECK_VALUE(options.out_channels() % groups == 0, kOwner,
                    ": out_channels must be divisible by groups (got out_channels=",
                    options.out_channels(), ", groups=", groups, ")");
  check_pair(kOwner, "kernel_size", *options.kernel_size(), 1, kLargestConvSize);
  check_pair(kOwner, "stride", *options.stride(), 1, kLargestConvStep);
  TORCH_CHECK_VALUE(!std::holds_alternative<torch::enumtype::kSame>(options.padding()) ||
                        *options.stride() == *torch::ExpandingArray<2>(1),
                    kOwner, ": stride must be 1 with padding='same' (got stride=", options.stride(),
                    ")");
  check_pair(kOwner, "dilation", *options.dilation(), 1, kLargestConvStep);
  if (const auto* numbers = std::get_if<torch::ExpandingArray<2>>(&options.padding())) {
    check_pair(kOwner, "padding", **numbers, 0, kLargestConvStep);
  }
  for (const Sides& sides : padding_amounts(options)) {
    check_in_range(kOwner, "padding='same' of a side", sides.after, 0, kLargestConvStep);
  }
  return {kOwner,
          options.in_channels(),
          options.out_channels(),
          {options.kernel_size()->begin(), options.kernel_size()->end()},
          groups,
          options.bias(),
          options.mixing()};
}

at::Tensor SKConv2dImpl::forward(const at::Tensor& input) {
  const at::Tensor weight = kept_weight(input);
  const auto [padded, padding] = pad(options, input);
  const std::optional<at::Tensor> bias_or_none =
      bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt;
  if (weight.defined()) {
    return at::conv2d(padded, weight, bias_or_none, *options.stride(), padding,
                      effective_dilation(conv_arguments(options, padding), weight),
                      options.groups());
  }
  return sk_conv2d(padded, s1, s2, u1, u2, bias_or_none, conv_arguments(options, padding),
                   arguments(), options.path());
}

bool SKConv2dImpl::prefers_dense(const at::Tensor& input) const {
  if (input.dim() != 3 && input.dim() != 4) return false;
  const int64_t height = input.size(-2), width = input.size(-1);
  const int64_t output_pixels = output_size(options, 0, height) * output_size(options, 1, width);
  // The operator says what is wrong with an input that does not fit.
  if (input.size(-3) != options.in_channels() || output_pixels == 0) return false;
  if (options.path() != "auto" || options.frame()) return options.path() != "factored";
  PlanProblem problem;
  problem.batch = input.dim() == 4 ? input.size(0) : 1;
  problem.in_channels = options.in_channels();
  problem.out_channels = options.out_channels();
  problem.groups = options.groups();
  problem.kernel_h = sizes_.kernel[0];
  problem.kernel_w = sizes_.kernel[1];
  problem.input_pixels = height * width;
  problem.output_pixels = output_pixels;
  problem.sketch_rank = options.num_sketches() * rank();
  problem.blocks = options.blocks();
  problem.mixing = sizes_.mixing == "spatial" ? Mixing::kSpatial : Mixing::kChannel;
  problem.weight_ready = true;
  describe_call(problem, input, s1, s2);
  if (wants_benchmark(problem, input, s1, s2)) {
    const auto [padded, padding] = pad(options, input);
    const bool is_one_call = padded.is_same(input);  // which the planner sees as this one
    if (is_one_call) {
      sk_conv2d(input, s1, s2, u1, u2, std::nullopt, conv_arguments(options, padding), arguments());
    }
  }
  return !plan(problem).factored;
}

void SKConv2dImpl::pretty_print(std::ostream& stream) const {
  stream << "sketchlayers::nn::SKConv2d(" << options.in_channels() << ", " << options.out_channels()
         << ", kernel_size=" << options.kernel_size() << ", stride=" << options.stride();
  if (const auto* numbers = std::get_if<torch::ExpandingArray<2>>(&options.padding())) {
    if (**numbers != *torch::ExpandingArray<2>(0)) stream << ", padding=" << *numbers;
  } else {
    const bool same = std::holds_alternative<torch::enumtype::kSame>(options.padding());
    stream << ", padding=" << (same ? "same" : "valid");
  }
  if (*options.dilation() != *torch::ExpandingArray<2>(1)) {
    stream << ", dilation=" << options.dilation();
  }
  if (options.groups() != 1) stream << ", groups=" << options.groups();
  if (!options.bias()) stream << ", bias=false";
  if (!std::holds_alternative<torch::enumtype::kZeros>(options.padding_mode())) {
    stream << ", padding_mode=" << torch::enumtype::get_enum_name(options.padding_mode());
  }
  stream << ", ";
  print_sketch(stream);
  stream << ")";
}

}  // namespace sketchlayers::nn
