#pragma once

#include "ops/hashed_weight.h"

namespace sketchlayers {

// The weight (rows, columns) of filters with `taps` positions, whose cosine coefficients are
// hashed: those of a filter are taken from `values` as hashed_weight does it, with a table for each
// tap, and multiplied by `basis (taps, taps)`, a row for each frequency. Formed in the type of the
// basis, and rounded once to that of the values.
at::Tensor fresh_weight(const at::Tensor& values, const at::Tensor& seed, const at::Tensor& basis,
                        c10::SymInt rows, c10::SymInt columns, const HashTables& tables);

}  // namespace sketchlayers
