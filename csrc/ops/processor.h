// What this processor has instructions for.
#pragma once

#include <ATen/core/Tensor.h>

#include "plan/cost_model.h"

namespace sketchlayers {

// Products of bfloat16 matrices by AMX, through PyTorch's micro-kernels.
bool multiplies_bfloat16();

// As the planner sees this CPU, for a type of numbers.
Processor cpu_for(Precision precision);

// How much slower PyTorch's layers are in a type, beside float32, than the planner's constants have
// it: some processors with instructions for bfloat16 take half of float32's time, some twice as
// long. Only for Processor::kOneDnn, others are 1. It is measured in some milliseconds at the first
// call outside of traces, and in steps of the square root of two, so that processes agree.
double dense_slowdown(Processor processor, Precision precision);

}  // namespace sketchlayers
