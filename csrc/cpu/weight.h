// The dense weight  frame o (A S1 + S2 B)  from packed signs, and its adjoint, tile by tile:
// no float copy of a sign matrix exists beyond a tile.
#pragma once

#include <cstdint>

#include "cpu/two_sided_conv.h"

namespace sketchlayers::cpu {

// Sizes of one group. A column of the signs of B is a `unit`: with spatial mixing one column of the
// weight, with channel mixing a channel, which is `positions` columns.
struct WeightShape {
  int64_t groups;
  int64_t outputs;
  int64_t rank;         // rows of S1, columns of A
  int64_t second_rank;  // rows of B
  int64_t units;
  int64_t positions;  // columns of the weight in a unit

  int64_t columns() const { return units * positions; }
};

// Scales are part of the signs' magnitudes.
struct WeightSigns {
  Signs a;      // A^T (rank, outputs)
  Signs b;      // B (second_rank, units)
  Signs frame;  // (outputs, columns), or packed is null
};

// weight (groups, outputs, columns) of s1 (groups, rank, columns) and s2 (groups, outputs,
// second_rank, positions).
template <typename T>
void form_weight(const WeightShape& shape, const WeightSigns& signs, const float* s1,
                 const float* s2, T* weight);

// Gradients of s1 and s2, either null, from that of the weight (groups, outputs, columns).
template <typename T>
void pull_back_weight(const WeightShape& shape, const WeightSigns& signs, const T* grad,
                      float* grad_s1, float* grad_s2);

}  // namespace sketchlayers::cpu
