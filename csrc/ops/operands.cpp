#include "ops/operands.h"

#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>

#include "ops/checks.h"
#include "ops/processor.h"

namespace sketchlayers {
namespace {

bool autocast_enabled(const at::Device& device) {
  return at::autocast::is_autocast_available(device.type()) &&
         at::autocast::is_autocast_enabled(device.type());
}

Precision precision(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return Precision::kFloat64;
    case at::kBFloat16:
      return Precision::kBFloat16;
    case at::kHalf:
      return Precision::kFloat16;
    default:
      return Precision::kFloat32;
  }
}

// Autocast brings all types but float64 together.
bool same_type_or_unified(const at::Tensor& a, const at::Tensor& b) {
  if (a.scalar_type() == b.scalar_type()) return true;
  return a.scalar_type() != at::kDouble && b.scalar_type() != at::kDouble &&
         autocast_enabled(a.device());
}

}  // namespace

Path parse_path(const char* op, const std::string& path, const SketchArguments& arguments,
                at::TensorList operands) {
  const bool needs_dense = arguments.frame.has_value();
  if (path == "auto") {
    return needs_dense || under_transform(operands) ? Path::kFolded : Path::kAuto;
  }
  if (path == "folded") return Path::kFolded;
  TORCH_CHECK_VALUE(path == "factored", op, ": path must be 'auto', 'factored' or 'folded' (got '",
                    path, "')");
  TORCH_CHECK_VALUE(!needs_dense, op,
                    ": a frame needs the dense weight, so path must be 'auto' or 'folded' (got "
                    "'factored')");
  TORCH_CHECK_NOT_IMPLEMENTED(
      !under_transform(operands), op,
      ": torch.func and forward-mode derivatives need the folded path, so path must be 'auto' or "
      "'folded' (got 'factored')");
  return Path::kFactored;
}

void check_operand(const char* op, const char* name, const at::Tensor& tensor,
                   const at::Tensor& s1) {
  TORCH_CHECK(tensor.device() == s1.device(), op, ": ", name,
              " must be on the device of the parameters (got ", tensor.device(), " and ",
              s1.device(), ")");
  check_floating(op, name, tensor);
  TORCH_CHECK_TYPE(same_type_or_unified(tensor, s1), op, ": ", name,
                   " must have the type of the parameters (got ", tensor.scalar_type(), " and ",
                   s1.scalar_type(), ")");
}

void check_bias(const char* op, const std::optional<at::Tensor>& bias, const at::Tensor& s1,
                const Sketch& sketch) {
  if (!bias) return;
  check_operand(op, "bias", *bias, s1);
  const int64_t out_channels = sketch.groups * sketch.out_channels;
  TORCH_CHECK(bias->dim() == 1 && bias->sym_size(0) == out_channels, op, ": bias must have shape (",
              out_channels, ") (got ", bias->sym_sizes(), ")");
}

void check_gradient(const char* op, const at::Tensor& grad, c10::SymIntArrayRef output_sizes,
                    const at::Tensor& s1) {
  TORCH_CHECK(grad.sym_sizes() == output_sizes, op, ": grad must have the shape of the output, ",
              output_sizes, " (got ", grad.sym_sizes(), ")");
  check_operand(op, "grad", grad, s1);
}

void describe_call(PlanProblem& problem, const at::Tensor& input, const at::Tensor& s1,
                   const at::Tensor& s2) {
  const auto type = input.scalar_type();
  const bool lowered = type != at::kDouble && autocast_enabled(input.device());
  problem.precision =
      precision(lowered ? at::autocast::get_autocast_dtype(input.device().type()) : type);
  problem.processor = input.is_cuda() ? Processor::kCuda : cpu_for(problem.precision);
  problem.dense_slowdown = dense_slowdown(problem.processor, problem.precision);
  // Gradients for the parameters make forming W_hat dearer.
  problem.training = at::GradMode::is_enabled() && (s1.requires_grad() || s2.requires_grad());
  problem.threads = at::get_num_threads();
  problem.channels_last = common_memory_format(input, s1) == at::MemoryFormat::ChannelsLast;
}

bool under_transform(at::TensorList operands) {
  if (c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode)) {
    return true;
  }
  return std::any_of(operands.begin(), operands.end(), [](const at::Tensor& operand) {
    return operand.defined() && operand._fw_grad(/*level=*/0).defined();
  });
}

bool records(at::TensorList operands) {
  const bool wanted = at::GradMode::is_enabled() &&
                      std::any_of(operands.begin(), operands.end(), [](const at::Tensor& operand) {
                        return operand.defined() && operand.requires_grad();
                      });
  return wanted || under_transform(operands);
}

}  // namespace sketchlayers
