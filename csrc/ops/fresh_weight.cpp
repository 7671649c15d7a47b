#include "ops/fresh_weight.h"

#include <torch/library.h>

#include "ops/operator.h"

namespace sketchlayers {

at::Tensor fresh_weight(const at::Tensor& values, const at::Tensor& seed, const at::Tensor& basis,
                        c10::SymInt rows, c10::SymInt columns, const HashTables& tables) {
  static const auto op =
      find_operator<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, c10::SymInt,
                               c10::SymInt, at::IntArrayRef, at::IntArrayRef)>("fresh_weight");
  return op.call(values, seed, basis, std::move(rows), std::move(columns), tables.first,
                 tables.buckets);
}

TORCH_LIBRARY_FRAGMENT(sketchlayers, m) {
  m.def(
      "fresh_weight(Tensor values, Tensor seed, Tensor basis, SymInt rows, SymInt columns, *,"
      " int[] first=[], int[] buckets=[]) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}

}  // namespace sketchlayers
