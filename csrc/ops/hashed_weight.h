#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace sketchlayers {

// Which values an entry may share: the columns go round through the tables, so that column c
// belongs to table c % taps. (A filter's position in its kernel is its tap.)
struct HashTables {
  std::vector<int64_t> first;    // of each table, the place of its first value
  std::vector<int64_t> buckets;  // of each table, how many values it has

  int64_t taps() const { return static_cast<int64_t>(first.size()); }
};

// The weight (rows, columns) whose entries are values (K,), shared by hash, with random signs; see
// hashes.h. Without tables there is one with all values. `seed` is an int64 scalar on the device of
// the values: a number would make every layer compile anew.
at::Tensor hashed_weight(const at::Tensor& values, const at::Tensor& seed, c10::SymInt rows,
                         c10::SymInt columns, const HashTables& tables);

// The adjoint: grad (rows, columns) to (K,), the signed sums over all entries of each value.
// Deterministic on every device.
at::Tensor hashed_weight_backward(const at::Tensor& grad, const at::Tensor& seed,
                                  int64_t num_values, const HashTables& tables);

// The place in `values` of every entry (rows, columns), int64; ~place where the sign is -1.
at::Tensor hash_entries(const at::Tensor& seed, c10::SymInt rows, c10::SymInt columns,
                        int64_t num_values, const HashTables& tables);

// The weight (rows, columns) of filters with `taps` positions, whose cosine coefficients are
// hashed: those of a filter are taken from `values` as hashed_weight does it, with a table for each
// tap, and multiplied by `basis (taps, taps)`, a row for each frequency. Formed in the type of the
// basis, and rounded once to that of the values.
at::Tensor fresh_weight(const at::Tensor& values, const at::Tensor& seed, const at::Tensor& basis,
                        c10::SymInt rows, c10::SymInt columns, const HashTables& tables);

// Argument checks, called by every kernel before it does any work. They return the tables with the
// default filled in.
HashTables check_hashed_weight(const at::Tensor& values, const at::Tensor& seed,
                               const c10::SymInt& rows, const c10::SymInt& columns,
                               at::IntArrayRef first, at::IntArrayRef buckets);
HashTables check_hashed_weight_backward(const at::Tensor& grad, const at::Tensor& seed,
                                        int64_t num_values, at::IntArrayRef first,
                                        at::IntArrayRef buckets);
HashTables check_hash_entries(const at::Tensor& seed, const c10::SymInt& rows,
                              const c10::SymInt& columns, int64_t num_values, at::IntArrayRef first,
                              at::IntArrayRef buckets);

}  // namespace sketchlayers
