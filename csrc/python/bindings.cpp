// The Python module beside libsketchlayers: the planner, what the build knows about itself, and a
// look at memory.
#include <ATen/Parallel.h>
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <utility>

#include "cuda/first_use.h"
#ifdef SKETCHLAYERS_CUDA_VERSION
#include "cuda/kernel_checks.h"
#include "cuda/kernel_families.h"
#endif
#include "ops/processor.h"
#include "plan/chain_plan.h"
#include "plan/measured_times.h"
#include "plan/plan.h"
#include "python/tensor_state.h"

namespace py = pybind11;

namespace {

sketchlayers::Mixing parse_mixing(const std::string& mixing) {
  if (mixing == "spatial") return sketchlayers::Mixing::kSpatial;
  if (mixing == "channel") return sketchlayers::Mixing::kChannel;
  throw py::value_error("plan: mixing must be 'spatial' or 'channel' (got '" + mixing + "')");
}

sketchlayers::Precision parse_precision(const std::string& dtype) {
  if (dtype == "float32") return sketchlayers::Precision::kFloat32;
  if (dtype == "float64") return sketchlayers::Precision::kFloat64;
  if (dtype == "bfloat16") return sketchlayers::Precision::kBFloat16;
  if (dtype == "float16") return sketchlayers::Precision::kFloat16;
  throw py::value_error("plan: dtype must be 'float32', 'float64', 'bfloat16' or 'float16' (got '" +
                        dtype + "')");
}

sketchlayers::Processor parse_processor(const std::string& name) {
  if (name == "cpu") return sketchlayers::Processor::kCpu;
  if (name == "onednn") return sketchlayers::Processor::kOneDnn;
  if (name == "amx") return sketchlayers::Processor::kAmx;
  if (name == "cuda") return sketchlayers::Processor::kCuda;
  throw py::value_error("plan: processor must be 'cpu', 'onednn', 'amx' or 'cuda' (got '" + name +
                        "')");
}

sketchlayers::Plan plan(std::optional<int64_t> batch, int64_t in_channels, int64_t out_channels,
                        int64_t groups, std::pair<int64_t, int64_t> kernel,
                        std::optional<int64_t> input_pixels, std::optional<int64_t> output_pixels,
                        int64_t sketch_rank, const std::string& mixing, bool is_linear,
                        const std::string& device, const std::string& dtype, bool training,
                        bool weight_ready, bool needs_folded, int64_t blocks, bool channels_last,
                        const std::optional<std::string>& processor) {
  if (in_channels < 1 || out_channels < 1 || groups < 1 || kernel.first < 1 || kernel.second < 1 ||
      sketch_rank < 1 || blocks < 1) {
    throw py::value_error(
        "plan: channels, groups, kernel, sketch_rank and blocks must be at least 1");
  }
  sketchlayers::PlanProblem problem;
  problem.batch = batch;
  problem.in_channels = in_channels;
  problem.out_channels = out_channels;
  problem.groups = groups;
  problem.kernel_h = kernel.first;
  problem.kernel_w = kernel.second;
  problem.input_pixels = input_pixels;
  problem.output_pixels = output_pixels;
  problem.sketch_rank = sketch_rank;
  problem.blocks = blocks;
  problem.mixing = parse_mixing(mixing);
  problem.is_linear = is_linear;
  problem.precision = parse_precision(dtype);
  problem.processor = processor          ? parse_processor(*processor)
                      : device == "cuda" ? sketchlayers::Processor::kCuda
                                         : sketchlayers::cpu_for(problem.precision);
  if (!processor)
    problem.dense_slowdown = sketchlayers::dense_slowdown(problem.processor, problem.precision);
  problem.training = training;
  problem.channels_last = channels_last;
  problem.weight_ready = weight_ready;
  problem.needs_folded = needs_folded;
  problem.threads = at::get_num_threads();
  return sketchlayers::plan(problem);
}

py::dict build_info() {
  py::dict info;
  info["version"] = SKETCHLAYERS_VERSION;
  info["torch"] = SKETCHLAYERS_TORCH_VERSION;
#ifdef SKETCHLAYERS_CUDA_VERSION
  info["cuda"] = SKETCHLAYERS_CUDA_VERSION;
  info["cuda_archs"] = SKETCHLAYERS_CUDA_ARCHS;
#else
  info["cuda"] = py::none();
  info["cuda_archs"] = "";
#endif
#if defined(__clang__)
  info["compiler"] = std::string("clang ") + __clang_version__;
#else
  info["compiler"] = std::string("gcc ") + __VERSION__;
#endif
#ifdef _OPENMP
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
  return info;
}

const char* cuda_kernel_mode() {
  using sketchlayers::cuda::KernelMode;
  try {
    const KernelMode mode = sketchlayers::cuda::kernel_mode();
    return mode == KernelMode::kOn ? "on" : mode == KernelMode::kOff ? "off" : "check";
  } catch (const c10::Error& error) {
    throw py::value_error(error.what_without_backtrace());
  }
}

#ifdef SKETCHLAYERS_CUDA_VERSION
// A family of kernels in one of its types.
struct CudaKernel {
  const sketchlayers::cuda::KernelFamily* family;
  at::ScalarType type;
};

std::vector<CudaKernel> cuda_kernels() {
  std::vector<CudaKernel> kernels;
  for (const auto& family : sketchlayers::cuda::kernel_families()) {
    for (const at::ScalarType type : family.types) kernels.push_back({&family, type});
  }
  return kernels;
}
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
  py::class_<sketchlayers::Plan>(m, "Plan", "Which path computes one call of a sketched layer.")
      .def_property_readonly(
          "path",
          [](const sketchlayers::Plan& plan) { return plan.factored ? "factored" : "folded"; })
      .def_readonly("reason", &sketchlayers::Plan::reason)
      .def_readonly("factored_multiply_adds", &sketchlayers::Plan::factored_multiply_adds)
      .def_readonly("folded_multiply_adds", &sketchlayers::Plan::folded_multiply_adds)
      .def_readonly("computed_multiply_adds", &sketchlayers::Plan::computed_multiply_adds)
      .def_readonly("computed_elements", &sketchlayers::Plan::computed_elements)
      .def_readonly("panels", &sketchlayers::Plan::panels)
      .def_readonly("factored_seconds", &sketchlayers::Plan::factored_seconds)
      .def_readonly("folded_seconds", &sketchlayers::Plan::folded_seconds)
      .def_readonly("dense_multiply_adds", &sketchlayers::Plan::dense_multiply_adds)
      .def("__repr__", [](const sketchlayers::Plan& plan) {
        return std::string("Plan(path='") + (plan.factored ? "factored" : "folded") +
               "', reason='" + plan.reason + "')";
      });
  m.def("plan", &plan, py::kw_only(), py::arg("batch"), py::arg("in_channels"),
        py::arg("out_channels"), py::arg("groups") = 1,
        py::arg("kernel") = std::pair<int64_t, int64_t>(1, 1), py::arg("input_pixels") = 1,
        py::arg("output_pixels") = 1, py::arg("sketch_rank"), py::arg("mixing") = "spatial",
        py::arg("is_linear") = false, py::arg("device") = "cpu", py::arg("dtype") = "float32",
        py::arg("training") = false, py::arg("weight_ready") = false,
        py::arg("needs_folded") = false, py::arg("blocks") = 1, py::arg("channels_last") = false,
        py::arg("processor") = py::none(),
        "The planner's choice for one call; None stands for a size that is not known yet, and for "
        "the "
        "kind of processor that is there.");
  m.def(
      "plan_chain",
      [](const std::string& device, const std::string& dtype, bool training, bool channels_last,
         bool factors, bool depthwise, double core, double multiply_adds, double pixels) {
        const sketchlayers::ChainPlan plan = sketchlayers::plan_chain(
            {device == "cuda" ? sketchlayers::Processor::kCuda : sketchlayers::Processor::kCpu,
             parse_precision(dtype), training, channels_last, factors, depthwise, core,
             multiply_adds, pixels});
        return std::pair<bool, std::string>(plan.fused, plan.reason);
      },
      py::kw_only(), py::arg("device"), py::arg("dtype"), py::arg("training"),
      py::arg("channels_last"), py::arg("factors"), py::arg("depthwise"), py::arg("core"),
      py::arg("multiply_adds"), py::arg("pixels"),
      "Whether a convolution that is a chain of factors is computed in one pass, and why.");
  m.def("set_benchmark", &sketchlayers::set_benchmark, py::arg("enabled"),
        "Whether the first call of a shape is to time the paths; the former setting.");
  m.def("benchmark_enabled", &sketchlayers::benchmark_enabled, "What was set.");
  m.def("forget_times", &sketchlayers::forget_times, "Drops what was timed.");
  m.def(
      "cpu_for",
      [](const std::string& dtype) {
        const char* const names[] = {"cpu", "onednn", "amx"};
        return names[static_cast<int>(sketchlayers::cpu_for(parse_precision(dtype)))];
      },
      py::arg("dtype"), "This CPU as the planner's constants name it for a type.");
  m.def("load_plan_costs", &sketchlayers::load_cost_model, py::arg("text"),
        "Replaces the planner's constants by those in the text.");
  m.def("reset_plan_costs", &sketchlayers::reset_cost_model,
        "Puts the planner's own constants back.");
  m.def("tensor_state", &sketchlayers::tensor_state, py::arg("tensor"),
        "Another number after nearly any change of a tensor, or None.");
  m.def("weight_state", &sketchlayers::weight_state, py::arg("attributes"), py::arg("sources"),
        "Another number after nearly any change of what a layer's weight is made from, or None "
        "where a call may not use an earlier weight.");
  m.def("build_info", &build_info, "What the compiled part was built from and for.");
  m.def("cuda_kernel_mode", &cuda_kernel_mode, "The value of SKETCHLAYERS_CUDA_KERNELS.");
#ifdef SKETCHLAYERS_CUDA_VERSION
  py::class_<CudaKernel>(m, "CudaKernel", "A family of CUDA kernels in one type.")
      .def_property_readonly("family", [](const CudaKernel& kernel) { return kernel.family->name; })
      .def_property_readonly("dtype",
                             [](const CudaKernel& kernel) {
                               return std::string(c10::getDtypeNames(kernel.type).first);
                             })
      .def(
          "compare",
          [](const CudaKernel& kernel) {
            const auto found = sketchlayers::cuda::compare_kernels(*kernel.family, kernel.type);
            return std::make_pair(found.difference, found.tolerance);
          },
          "The largest difference from the composition on the current device, relative to the "
          "largest number, and what it may be.")
      .def(
          "step",
          [](const CudaKernel& kernel) {
            using sketchlayers::cuda::ComputedBy;
            const auto step = sketchlayers::cuda::kernel_step(*kernel.family, kernel.type);
            return std::function<void(bool)>([step](bool by_kernels) {
              step(by_kernels ? ComputedBy::kOperator : ComputedBy::kComposition);
            });
          },
          "A function that computes a layer of a network's size, by the kernels or, given False, "
          "by "
          "the composition.");
  m.def("cuda_kernels", &cuda_kernels, "All families of CUDA kernels in all types.");
#endif
}
