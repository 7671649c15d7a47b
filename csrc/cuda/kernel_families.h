// The families of kernels, and for each the problems that it is checked and timed with: what the
// operator computes on a device against the composition of ATen's operations in float64 on the CPU.
// Nothing here needs CUDA, so that tests run the problems on the CPU.
#pragma once

#include <ATen/ops/abs.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/max.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/sub.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "composite/composed.h"
#include "ops/sign_matrix.h"
#include "philox.h"

namespace sketchlayers::cuda {

using Tensors = std::vector<at::Tensor>;

// What a problem is computed from.
struct ProblemOperands {
  Tensors tensors;
  at::ScalarType type;  // of the tensors that are numbers; packed signs and seeds keep theirs
  at::Device device;
};

enum class ComputedBy { kOperator, kComposition };

struct KernelProblem {
  Tensors tensors;  // on the CPU, numbers in float64
  std::function<Tensors(const ProblemOperands&, ComputedBy)> compute;
};

// The operands of a problem on a device, rounded to a type.
inline ProblemOperands placed(const KernelProblem& problem, at::ScalarType type,
                              at::Device device) {
  ProblemOperands operands{{}, type, device};
  for (const at::Tensor& tensor : problem.tensors) {
    const at::Tensor rounded = tensor.is_floating_point() ? tensor.to(type) : tensor;
    operands.tensors.push_back(rounded.to(device));
  }
  return operands;
}

// Numbers in [-1, 1], always the same; no generator of the caller's moves on.
inline at::Tensor values(at::IntArrayRef sizes, uint64_t key) {
  at::Tensor result = at::empty(sizes, at::kDouble);
  double* const data = result.mutable_data_ptr<double>();
  for (int64_t i = 0; i < result.numel(); ++i) {
    const PhiloxBlock bits = philox4x32({{static_cast<uint32_t>(i), 0, 0, 0}}, key);
    data[i] = std::ldexp(static_cast<int32_t>(bits.word[0]), -31);
  }
  return result;
}

inline at::Tensor packed_signs(int64_t matrix, int64_t groups, int64_t rows, int64_t columns) {
  return sign_matrix(/*seed=*/1, matrix, groups * rows, columns, at::Device(at::kCPU))
      .view({groups, rows, -1});
}

// ------------------------------------------------------------------- convolutions and weights

// A layer; channels are those of one group.
struct ConvProblem {
  int64_t batch, in_channels, out_channels, groups, rank, num_sketches;
  std::vector<int64_t> kernel, size;
  ConvArguments conv;
  at::MemoryFormat format;
  std::string mixing = "channel";
  bool frame = false;

  int64_t positions() const { return kernel[0] * kernel[1]; }
  SketchArguments arguments() const { return {mixing, num_sketches}; }

  at::Tensor s1() const {
    return values({groups * rank, in_channels, kernel[0], kernel[1]}, 1).contiguous(format);
  }
  at::Tensor s2() const {
    return values({groups * out_channels, rank, kernel[0], kernel[1]}, 2).contiguous(format);
  }
  at::Tensor u1() const { return packed_signs(0, groups, rank, out_channels); }
  at::Tensor u2() const {
    const int64_t mixed = mixing == "spatial" ? positions() : 1;
    return packed_signs(1, groups, rank * mixed, in_channels * mixed);
  }
  at::Tensor frame_signs() const {
    return packed_signs(2, groups, out_channels, in_channels * positions());
  }
  at::Tensor input() const {
    return values({batch, groups * in_channels, size[0], size[1]}, 3).contiguous(format);
  }
  at::Tensor bias() const { return values({groups * out_channels}, 4); }
  at::Tensor grad() const {
    std::vector<int64_t> sizes{batch, groups * out_channels};
    for (size_t i = 0; i < 2; ++i) {
      const int64_t extent = conv.dilation[i] * (kernel[i] - 1) + 1;
      sizes.push_back((size[i] + 2 * conv.padding[i] - extent) / conv.stride[i] + 1);
    }
    return values(sizes, 5).contiguous(format);
  }
  at::Tensor weight_grad() const {
    return values({groups * out_channels, in_channels, kernel[0], kernel[1]}, 6).contiguous(format);
  }
};

// One problem for each rank that has kernels of its own, up to 16, 32, 48 and 64, and one whose
// images are cut into tiles. Between them they have several groups, chunks of channels and tiles of
// outputs, channels that can and cannot be moved 16 bytes at a time, and every argument.
inline std::vector<ConvProblem> conv_problems(bool large) {
  const auto nhwc = at::MemoryFormat::ChannelsLast, nchw = at::MemoryFormat::Contiguous;
  if (large) {
    return {{128, 256, 256, 1, 13, 1, {3, 3}, {14, 14}, {{1, 1}, {1, 1}, {1, 1}, 1}, nhwc}};
  }
  return {
      {3, 24, 20, 2, 5, 1, {3, 3}, {9, 7}, {{1, 1}, {1, 1}, {1, 1}, 2}, nhwc},
      {1, 16, 72, 1, 16, 1, {3, 3}, {41, 35}, {{1, 1}, {1, 1}, {1, 1}, 1}, nhwc},
      {2, 72, 80, 1, 20, 1, {3, 3}, {10, 11}, {{2, 1}, {1, 2}, {1, 2}, 1}, nchw},
      {2, 13, 7, 1, 36, 2, {3, 2}, {11, 5}, {{1, 1}, {0, 1}, {1, 1}, 1}, nhwc},
      {5, 40, 136, 1, 64, 1, {1, 1}, {6, 5}, {{1, 1}, {0, 0}, {1, 1}, 1}, nhwc},
  };
}

inline std::vector<KernelProblem> forward_problems(bool large) {
  std::vector<KernelProblem> result;
  for (const ConvProblem& layer : conv_problems(large)) {
    result.push_back({{layer.input(), layer.s1(), layer.s2(), layer.u1(), layer.u2(), layer.bias()},
                      [layer](const ProblemOperands& operands, ComputedBy by) -> Tensors {
                        const Tensors& t = operands.tensors;
                        const std::optional<at::Tensor> bias = t[5];
                        const ConvCall call{
                            t[0], {t[1], t[2], t[3], t[4]}, bias, layer.conv, layer.arguments()};
                        return {by == ComputedBy::kOperator ? sk_conv2d_factored(call)
                                                            : sk_conv2d_composed(call)};
                      }});
  }
  return result;
}

inline std::vector<KernelProblem> gradient_problems(bool large, std::array<bool, 3> output_mask) {
  std::vector<KernelProblem> result;
  for (ConvProblem layer : conv_problems(large)) {
    if (output_mask[0]) layer.conv.stride = {1, 1};  // the kernel takes no other
    result.push_back({{layer.grad(), layer.input(), layer.s1(), layer.s2(), layer.u1(), layer.u2()},
                      [layer, output_mask](const ProblemOperands& operands, ComputedBy by) {
                        const Tensors& t = operands.tensors;
                        const ConvBackwardCall call{
                            t[0],        t[1],       {t[2], t[3], t[4], t[5]},
                            output_mask, layer.conv, layer.arguments()};
                        const auto [grad_input, grad_s1, grad_s2] =
                            by == ComputedBy::kOperator ? sk_conv2d_factored_backward(call)
                                                        : sk_conv2d_composed_backward(call);
                        return output_mask[0] ? Tensors{grad_input} : Tensors{grad_s1, grad_s2};
                      }});
  }
  return result;
}

inline std::vector<KernelProblem> input_gradient_problems(bool large) {
  return gradient_problems(large, {true, false, false});
}
inline std::vector<KernelProblem> factor_gradient_problems(bool large) {
  return gradient_problems(large, {false, true, true});
}

// Both mixings, groups, both memory formats, a frame, and depths that are split over blocks.
inline std::vector<ConvProblem> weight_layers(bool large) {
  const auto nhwc = at::MemoryFormat::ChannelsLast, nchw = at::MemoryFormat::Contiguous;
  if (large) return {{1, 256, 256, 1, 13, 1, {3, 3}, {1, 1}, {}, nchw, "spatial"}};
  return {
      {1, 15, 7, 3, 4, 1, {5, 2}, {1, 1}, {}, nchw, "spatial"},
      {1, 19, 33, 1, 6, 2, {3, 3}, {1, 1}, {}, nhwc, "spatial", /*frame=*/true},
      {1, 45, 150, 2, 70, 1, {3, 3}, {1, 1}, {}, nchw, "channel", /*frame=*/true},
      {1, 140, 70, 1, 9, 1, {1, 1}, {1, 1}, {}, nchw, "spatial"},
  };
}

inline std::vector<KernelProblem> weight_problems(bool large) {
  std::vector<KernelProblem> result;
  for (const ConvProblem& layer : weight_layers(large)) {
    result.push_back({{layer.s1(), layer.s2(), layer.u1(), layer.u2(), layer.frame_signs()},
                      [layer](const ProblemOperands& operands, ComputedBy by) -> Tensors {
                        const Tensors& t = operands.tensors;
                        SketchArguments arguments = layer.arguments();
                        if (layer.frame) arguments.frame = t[4];
                        return {by == ComputedBy::kOperator
                                    ? sk_weight(t[0], t[1], t[2], t[3], arguments)
                                    : sk_weight_composed({{t[0], t[1], t[2], t[3]}, arguments})};
                      }});
  }
  return result;
}

inline std::vector<KernelProblem> weight_backward_problems(bool large) {
  std::vector<KernelProblem> result;
  for (const ConvProblem& layer : weight_layers(large)) {
    result.push_back({{layer.weight_grad(), layer.u1(), layer.u2(), layer.frame_signs()},
                      [layer](const ProblemOperands& operands, ComputedBy by) -> Tensors {
                        const Tensors& t = operands.tensors;
                        SketchArguments arguments = layer.arguments();
                        if (layer.frame) arguments.frame = t[3];
                        const auto [grad_s1, grad_s2] =
                            by == ComputedBy::kOperator
                                ? sk_weight_backward(t[0], t[1], t[2], arguments)
                                : sk_weight_composed_backward({t[0], t[1], t[2], arguments});
                        return {grad_s1, grad_s2};
                      }});
  }
  return result;
}

// ------------------------------------------------------------------- fully connected layers

// As many vectors as each kernel takes at a time, and some left over; rows that can and cannot be
// read 16 bytes at a time.
inline std::vector<KernelProblem> linear_problems(bool large) {
  struct Layer {
    int64_t vectors, in_channels, out_channels, rank;
  };
  const std::vector<Layer> small{
      {1, 515, 259, 37}, {2, 256, 96, 16}, {3, 515, 70, 9}, {13, 264, 131, 40}};
  std::vector<KernelProblem> result;
  for (const auto& [vectors, in_channels, out_channels, rank] :
       large ? std::vector<Layer>{{1, 4096, 4096, 204}} : small) {
    result.push_back({{values({vectors, in_channels}, 1), values({rank, in_channels}, 2),
                       values({out_channels, rank}, 3), packed_signs(0, 1, rank, out_channels),
                       packed_signs(1, 1, rank, in_channels), values({out_channels}, 4)},
                      [](const ProblemOperands& operands, ComputedBy by) -> Tensors {
                        const Tensors& t = operands.tensors;
                        const std::optional<at::Tensor> bias = t[5];
                        const LinearCall call{t[0], {t[1], t[2], t[3], t[4]}, bias, {}};
                        return {by == ComputedBy::kOperator ? sk_linear_factored(call)
                                                            : sk_linear_composed(call)};
                      }});
  }
  return result;
}

// ------------------------------------------------------------------- hashes and signs

struct HashProblem {
  int64_t rows, columns, num_values;
  HashTables tables;

  at::Tensor seed() const {
    return at::scalar_tensor((int64_t{1} << 40) + 7, at::TensorOptions().dtype(at::kLong));
  }
};

inline std::vector<HashProblem> hash_problems(bool large) {
  if (large) return {{512, 4608, 235929, {{0}, {235929}}}};
  return {{200, 33, 97, {{0}, {97}}}, {50, 126, 61, {{0, 10, 10}, {10, 51, 40}}}};
}

inline std::vector<KernelProblem> hashed_weight_problems(bool large) {
  std::vector<KernelProblem> result;
  for (const HashProblem& hashed : hash_problems(large)) {
    result.push_back({{values({hashed.num_values}, 1), hashed.seed()},
                      [hashed](const ProblemOperands& operands, ComputedBy by) -> Tensors {
                        const auto of =
                            by == ComputedBy::kOperator ? hashed_weight : hashed_weight_composition;
                        return {of(operands.tensors[0], operands.tensors[1], hashed.rows,
                                   hashed.columns, hashed.tables)};
                      }});
  }
  return result;
}

inline std::vector<KernelProblem> hashed_weight_backward_problems(bool large) {
  std::vector<KernelProblem> result;
  for (const HashProblem& hashed : hash_problems(large)) {
    result.push_back(
        {{values({hashed.rows, hashed.columns}, 1), hashed.seed()},
         [hashed](const ProblemOperands& operands, ComputedBy by) -> Tensors {
           const auto of = by == ComputedBy::kOperator ? hashed_weight_backward
                                                       : hashed_weight_backward_composed;
           return {of(operands.tensors[0], operands.tensors[1], hashed.num_values, hashed.tables)};
         }});
  }
  return result;
}

inline std::vector<KernelProblem> hash_entries_problems(bool large) {
  std::vector<KernelProblem> result;
  for (const HashProblem& hashed : hash_problems(large)) {
    result.push_back(
        {{hashed.seed()}, [hashed](const ProblemOperands& operands, ComputedBy by) -> Tensors {
           const auto of = by == ComputedBy::kOperator ? hash_entries : hash_entries_composed;
           return {of(operands.tensors[0], hashed.rows, hashed.columns, hashed.num_values,
                      hashed.tables)};
         }});
  }
  return result;
}

inline std::vector<KernelProblem> sign_matrix_problems(bool large) {
  const int64_t rows = large ? 4096 : 33, columns = large ? 4096 : 1000;
  return {{{}, [=](const ProblemOperands& operands, ComputedBy by) -> Tensors {
             const int64_t seed = (int64_t{1} << 40) + 7, matrix = 3;
             return {by == ComputedBy::kOperator
                         ? sign_matrix(seed, matrix, rows, columns, operands.device)
                         : sign_matrix_composed(seed, matrix, rows, columns, operands.device)};
           }}};
}

inline std::vector<KernelProblem> unpack_signs_problems(bool large) {
  const int64_t rows = large ? 4096 : 33, columns = large ? 4096 : 171, start = large ? 0 : 45;
  return {{{packed_signs(3, 2, rows, start + columns)},
           [=](const ProblemOperands& operands, ComputedBy by) -> Tensors {
             const at::Tensor& packed = operands.tensors[0];
             const double scale = 0.75;
             return {by == ComputedBy::kOperator
                         ? unpack_signs(packed, columns, start, operands.type, scale)
                         : unpack_signs_composed(packed, columns, start, operands.type, scale)};
           }}};
}

// ------------------------------------------------------------------- families

struct KernelFamily {
  const char* name;
  std::vector<at::ScalarType> types;  // that have kernels
  double float_eps;                   // of products in float32; 0 where nothing is rounded
  std::vector<KernelProblem> (*problems)(bool large);

  // Results may differ by so much, relative to the largest: some roundings of the type, and of a
  // sum in float32.
  double tolerance(at::ScalarType type) const {
    if (float_eps == 0) return 0;
    const double eps = type == at::kHalf       ? std::ldexp(1, -10)
                       : type == at::kBFloat16 ? std::ldexp(1, -7)
                                               : float_eps;
    return 4 * eps + 64 * std::numeric_limits<float>::epsilon();
  }
};

// In the order of KernelFamilyIndex (kernel_checks.h).
inline const std::vector<KernelFamily>& kernel_families() {
  const double tensor_float = std::ldexp(1, -10), full_float = std::ldexp(1, -23);
  const std::vector<at::ScalarType> halves{at::kBFloat16, at::kHalf};
  const std::vector<at::ScalarType> floats{at::kFloat, at::kBFloat16, at::kHalf};
  const std::vector<at::ScalarType> all{at::kFloat, at::kDouble, at::kBFloat16, at::kHalf};
  static const std::vector<KernelFamily> families{
      {"channel_conv", floats, tensor_float, forward_problems},
      {"channel_conv input gradient", floats, tensor_float, input_gradient_problems},
      {"channel_conv factor gradients", halves, tensor_float, factor_gradient_problems},
      {"narrow_linear", floats, full_float, linear_problems},
      {"sk_weight", floats, full_float, weight_problems},
      {"sk_weight backward", floats, full_float, weight_backward_problems},
      {"hashed_weight", all, 0, hashed_weight_problems},
      {"hashed_weight backward", floats, full_float, hashed_weight_backward_problems},
      {"hash_entries", {at::kLong}, 0, hash_entries_problems},
      {"sign_matrix", {at::kInt}, 0, sign_matrix_problems},
      {"unpack_signs", all, 0, unpack_signs_problems},
  };
  return families;
}

// ------------------------------------------------------------------- comparison

// Differences are relative to the largest number of a result.
struct Comparison {
  double difference;
  double tolerance;

  bool passes() const { return difference <= tolerance; }
};

// The largest difference of all results; infinite for NaNs.
inline double largest_difference(const Tensors& results, const Tensors& expected) {
  double largest = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const at::Tensor result = results[i].to(at::kCPU, at::kDouble);
    const at::Tensor reference = expected[i].to(at::kDouble);
    const double error = at::sub(result, reference).abs().max().item<double>();
    const double scale = reference.abs().max().item<double>();
    const double relative = error == 0 ? 0 : error / scale;
    largest = std::isnan(relative) ? std::numeric_limits<double>::infinity()
                                   : std::max(largest, relative);
  }
  return largest;
}

// The operator on a device against the composition in float64 on the CPU, whose values depend on no
// setting of the device. Only kernels are called: the caller's autograd, autocast, transforms and
// modes have no part in it, and are as they were afterwards.
inline Comparison compare(const KernelFamily& family, at::ScalarType type, at::Device device) {
  const c10::impl::ForceDispatchKeyGuard kernels_only(
      c10::DispatchKeySet(c10::DispatchKey::BackendSelect),
      c10::autograd_dispatch_keyset_with_ADInplaceOrView | c10::autocast_dispatch_keyset);
  double largest = 0;
  for (const KernelProblem& problem : family.problems(/*large=*/false)) {
    const Tensors results = problem.compute(placed(problem, type, device), ComputedBy::kOperator);
    const ProblemOperands on_cpu = placed(problem, type, at::kCPU);
    ProblemOperands reference{{}, at::kDouble, at::kCPU};
    for (const at::Tensor& tensor : on_cpu.tensors) {
      reference.tensors.push_back(tensor.is_floating_point() ? tensor.to(at::kDouble) : tensor);
    }
    largest = std::max(
        largest, largest_difference(results, problem.compute(reference, ComputedBy::kComposition)));
  }
  return {largest, family.tolerance(type)};
}

}  // namespace sketchlayers::cuda
