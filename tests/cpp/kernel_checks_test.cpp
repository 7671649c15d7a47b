// How kernels are checked at their first use, without a GPU: which calls check and what follows,
// and the problems, which the operators of the CPU compute.
#include "cuda/kernel_checks.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <stdexcept>

#include "cuda/first_use.h"
#include "cuda/kernel_families.h"

namespace sketchlayers::cuda {
namespace {

// A kernel and what its check finds.
struct CheckedKernel {
  FirstUse use;
  bool capturing = false;
  std::function<std::string()> check = [] { return ""; };
  int checks = 0;
  std::vector<std::string> warnings;

  bool allows() {
    return use.allows([&] { return !capturing; },
                      [&] {
                        ++checks;
                        return check();
                      },
                      [&](const std::string& wrong) { warnings.push_back(wrong); });
  }
};

TEST(FirstUse, AKernelThatPassesIsCheckedOnceAndUsed) {
  CheckedKernel kernel;
  for (int call = 0; call < 3; ++call) EXPECT_TRUE(kernel.allows());
  EXPECT_EQ(kernel.checks, 1);
  EXPECT_TRUE(kernel.warnings.empty());
}

TEST(FirstUse, AWrongKernelIsNeverUsedAndWarnsOnce) {
  CheckedKernel kernel;
  kernel.check = [] { return "differs"; };
  for (int call = 0; call < 3; ++call) EXPECT_FALSE(kernel.allows());
  EXPECT_EQ(kernel.checks, 1);
  EXPECT_EQ(kernel.warnings, std::vector<std::string>{"differs"});
}

TEST(FirstUse, AKernelThatDoesNotLaunchIsNeverUsed) {
  CheckedKernel kernel;
  kernel.check = []() -> std::string { TORCH_CHECK(false, "no kernel image"); };
  EXPECT_FALSE(kernel.allows());
  kernel.check = [] { return ""; };
  EXPECT_FALSE(kernel.allows());
  EXPECT_EQ(kernel.warnings, std::vector<std::string>{"no kernel image"});

  CheckedKernel other;
  other.check = []() -> std::string { throw std::runtime_error("anything"); };
  EXPECT_FALSE(other.allows());
  EXPECT_EQ(other.warnings, std::vector<std::string>{"anything"});
}

TEST(FirstUse, ACaptureLeavesTheCheckForLater) {
  CheckedKernel kernel;
  kernel.capturing = true;
  EXPECT_FALSE(kernel.allows());
  EXPECT_EQ(kernel.checks, 0);
  kernel.capturing = false;
  EXPECT_TRUE(kernel.allows());
  kernel.capturing = true;
  EXPECT_TRUE(kernel.allows());
  EXPECT_EQ(kernel.checks, 1);
}

TEST(FirstUse, WithoutMemoryTheCheckIsLeftForLater) {
  CheckedKernel kernel;
  kernel.check = []() -> std::string { TORCH_CHECK_WITH(OutOfMemoryError, false, "no memory"); };
  EXPECT_FALSE(kernel.allows());
  kernel.check = [] { return ""; };
  EXPECT_TRUE(kernel.allows());
  EXPECT_TRUE(kernel.warnings.empty());
}

TEST(FirstUse, WhatTheCheckItselfCallsDoesNotUseTheKernel) {
  CheckedKernel kernel;
  bool used = true;
  kernel.check = [&] {
    used = kernel.allows();
    return "";
  };
  EXPECT_TRUE(kernel.allows());
  EXPECT_FALSE(used);
  EXPECT_EQ(kernel.checks, 1);
}

TEST(FirstUse, AWarningThatRaisesLeavesTheKernelUnused) {
  FirstUse use;
  const auto allows = [&] {
    return use.allows([] { return true; }, [] { return std::string("differs"); },
                      [](const std::string& wrong) { throw std::runtime_error(wrong); });
  };
  EXPECT_THROW(allows(), std::runtime_error);
  EXPECT_FALSE(allows());
}

TEST(KernelMode, IsReadFromItsVariable) {
  EXPECT_EQ(parse_kernel_mode(nullptr), KernelMode::kCheck);
  EXPECT_EQ(parse_kernel_mode(""), KernelMode::kCheck);
  EXPECT_EQ(parse_kernel_mode("check"), KernelMode::kCheck);
  EXPECT_EQ(parse_kernel_mode("on"), KernelMode::kOn);
  EXPECT_EQ(parse_kernel_mode("off"), KernelMode::kOff);
  try {
    parse_kernel_mode("yes");
    ADD_FAILURE() << "a wrong value must raise";
  } catch (const c10::ValueError& error) {
    EXPECT_STREQ(error.what_without_backtrace(),
                 "SKETCHLAYERS_CUDA_KERNELS must be check, on or off (got 'yes'): set it to one of "
                 "them, or unset it to have kernels checked at their first use");
  }
}

TEST(KernelFamilies, AreWhereTheirIndicesSay) {
  const auto& families = kernel_families();
  ASSERT_EQ(families.size(), static_cast<size_t>(kKernelFamilies));
  EXPECT_STREQ(families[kChannelConv].name, "channel_conv");
  EXPECT_STREQ(families[kNarrowLinear].name, "narrow_linear");
  EXPECT_STREQ(families[kHashedWeight].name, "hashed_weight");
  EXPECT_STREQ(families[kUnpackSigns].name, "unpack_signs");
}

TEST(KernelFamilies, TheOperatorsOfTheCPUPassEveryCheck) {
  for (const KernelFamily& family : kernel_families()) {
    for (const at::ScalarType type : family.types) {
      const Comparison found = compare(family, type, at::kCPU);
      EXPECT_TRUE(found.passes()) << family.name << " in " << type << ": " << found.difference;
      EXPECT_EQ(found.tolerance == 0, family.float_eps == 0) << family.name;
      EXPECT_LE(found.tolerance, 0.04) << family.name;
    }
  }
}

TEST(KernelFamilies, WrongResultsAreFound) {
  for (const KernelFamily& family : kernel_families()) {
    for (const KernelProblem& problem : family.problems(/*large=*/false)) {
      const ProblemOperands operands = placed(problem, at::kDouble, at::kCPU);
      const Tensors expected = problem.compute(operands, ComputedBy::kComposition);
      for (size_t i = 0; i < expected.size(); ++i) {
        const double tolerance = family.tolerance(at::kBFloat16);
        Tensors wrong = expected;
        wrong[i] = expected[i].neg();
        EXPECT_GT(largest_difference(wrong, expected), tolerance) << family.name;
        if (!expected[i].is_floating_point()) continue;
        wrong[i] = at::full_like(expected[i], std::nan(""));
        EXPECT_GT(largest_difference(wrong, expected), tolerance) << family.name;
        wrong[i] = expected[i].clone();
        const at::Tensor largest = expected[i].abs().eq(expected[i].abs().max());
        wrong[i].masked_fill_(largest, 0);
        EXPECT_GT(largest_difference(wrong, expected), tolerance) << family.name;
      }
    }
  }
}

TEST(KernelFamilies, AComparisonLeavesTheThreadAsItWas) {
  const auto before = c10::impl::tls_local_dispatch_key_set();
  const at::Tensor state = at::detail::getDefaultCPUGenerator().get_state();
  compare(kernel_families()[kWeight], at::kFloat, at::kCPU);
  const auto after = c10::impl::tls_local_dispatch_key_set();
  EXPECT_EQ(before.included_, after.included_);
  EXPECT_EQ(before.excluded_, after.excluded_);
  EXPECT_TRUE(at::detail::getDefaultCPUGenerator().get_state().equal(state));
}

}  // namespace
}  // namespace sketchlayers::cuda
