#include "ops/hashed_weight.h"

#include <torch/library.h>

#include "hashes.h"
#include "ops/checks.h"
#include "ops/operator.h"

namespace sketchlayers {

at::Tensor hashed_weight(const at::Tensor& values, const at::Tensor& seed, c10::SymInt rows,
                         c10::SymInt columns, const HashTables& tables) {
  static const auto op =
      find_operator<at::Tensor(const at::Tensor&, const at::Tensor&, c10::SymInt, c10::SymInt,
                               at::IntArrayRef, at::IntArrayRef)>("hashed_weight");
  return op.call(values, seed, std::move(rows), std::move(columns), tables.first, tables.buckets);
}

at::Tensor hashed_weight_backward(const at::Tensor& grad, const at::Tensor& seed,
                                  int64_t num_values, const HashTables& tables) {
  static const auto op =
      find_operator<at::Tensor(const at::Tensor&, const at::Tensor&, int64_t, at::IntArrayRef,
                               at::IntArrayRef)>("hashed_weight_backward");
  return op.call(grad, seed, num_values, tables.first, tables.buckets);
}

at::Tensor hash_entries(const at::Tensor& seed, c10::SymInt rows, c10::SymInt columns,
                        int64_t num_values, const HashTables& tables) {
  static const auto op =
      find_operator<at::Tensor(const at::Tensor&, c10::SymInt, c10::SymInt, int64_t,
                               at::IntArrayRef, at::IntArrayRef)>("hash_entries");
  return op.call(seed, std::move(rows), std::move(columns), num_values, tables.first,
                 tables.buckets);
}

namespace {

void check_seed(const char* op, const at::Tensor& seed) {
  TORCH_CHECK_TYPE(seed.scalar_type() == at::kLong, op, ": seed must be int64 (got ",
                   seed.scalar_type(), ")");
  check_strided(op, "seed", seed);
  TORCH_CHECK(seed.sym_numel() == 1, op, ": seed must be one number (got shape ", seed.sym_sizes(),
              ")");
}

void check_sizes(const char* op, const c10::SymInt& rows, const c10::SymInt& columns) {
  constexpr int64_t kWordLimit = int64_t{1} << 32;  // each is one 32-bit word of the counter
  TORCH_CHECK_VALUE(rows >= 0 && rows <= kWordLimit, op,
                    ": rows must be in [0, 2^32] (got rows=", rows, ")");
  TORCH_CHECK_VALUE(columns >= 0 && columns <= kWordLimit * kHashesPerBlock, op,
                    ": columns must be in [0, 2^34] (got columns=", columns, ")");
  check_result_sizes(op, {rows, columns});
}

HashTables checked_tables(const char* op, int64_t num_values, const c10::SymInt& columns,
                          at::IntArrayRef first, at::IntArrayRef buckets) {
  constexpr int64_t kMostValues = int64_t{1} << kHashBits;
  constexpr size_t kMostTables = 256;  // arguments of a CUDA kernel
  TORCH_CHECK_VALUE(num_values >= 1 && num_values <= kMostValues, op,
                    ": values must be at least 1 and at most 2^31 (got ", num_values, ")");
  TORCH_CHECK_VALUE(first.size() == buckets.size(), op,
                    ": first and buckets must have one number for each table (got ", first.size(),
                    " and ", buckets.size(), ")");
  TORCH_CHECK_VALUE(first.size() <= kMostTables, op, ": there can be at most ", kMostTables,
                    " tables (got ", first.size(), ")");
  if (first.empty()) return {{0}, {num_values}};
  for (size_t table = 0; table < first.size(); ++table) {
    TORCH_CHECK_VALUE(
        first[table] >= 0 && buckets[table] >= 1 && buckets[table] <= num_values - first[table], op,
        ": every table must lie in the ", num_values, " values (got first=", first[table],
        ", buckets=", buckets[table], ")");
  }
  const auto taps = static_cast<int64_t>(first.size());
  TORCH_CHECK_VALUE(columns % taps == 0, op,
                    ": columns must be divisible by the number of tables (got columns=", columns,
                    ", tables=", taps, ")");
  return {first.vec(), buckets.vec()};
}

void check_matrix(const char* op, const char* name, const at::Tensor& tensor, int64_t dimensions,
                  const at::Tensor& seed) {
  check_floating(op, name, tensor);
  TORCH_CHECK(tensor.dim() == dimensions, op, ": ", name, " must have ", dimensions,
              " dimension(s) (got shape ", tensor.sym_sizes(), ")");
  TORCH_CHECK(tensor.device() == seed.device(), op, ": ", name,
              " and seed must be on the same device (got ", tensor.device(), " and ", seed.device(),
              ")");
}

}  // namespace

HashTables check_hashed_weight(const at::Tensor& values, const at::Tensor& seed,
                               const c10::SymInt& rows, const c10::SymInt& columns,
                               at::IntArrayRef first, at::IntArrayRef buckets) {
  const char* op = "hashed_weight";
  check_seed(op, seed);
  check_matrix(op, "values", values, 1, seed);
  check_sizes(op, rows, columns);
  return checked_tables(op, values.size(0), columns, first, buckets);
}

HashTables check_hashed_weight_backward(const at::Tensor& grad, const at::Tensor& seed,
                                        int64_t num_values, at::IntArrayRef first,
                                        at::IntArrayRef buckets) {
  const char* op = "hashed_weight_backward";
  check_seed(op, seed);
  check_matrix(op, "grad", grad, 2, seed);
  check_sizes(op, grad.sym_size(0), grad.sym_size(1));
  return checked_tables(op, num_values, grad.sym_size(1), first, buckets);
}

HashTables check_hash_entries(const at::Tensor& seed, const c10::SymInt& rows,
                              const c10::SymInt& columns, int64_t num_values, at::IntArrayRef first,
                              at::IntArrayRef buckets) {
  const char* op = "hash_entries";
  check_seed(op, seed);
  check_sizes(op, rows, columns);
  return checked_tables(op, num_values, columns, first, buckets);
}

TORCH_LIBRARY_FRAGMENT(sketchlayers, m) {
  m.def(
      "hashed_weight(Tensor values, Tensor seed, SymInt rows, SymInt columns, *, int[] first=[],"
      " int[] buckets=[]) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "hashed_weight_backward(Tensor grad, Tensor seed, int num_values, *, int[] first=[],"
      " int[] buckets=[]) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "hash_entries(Tensor seed, SymInt rows, SymInt columns, int num_values, *, int[] first=[],"
      " int[] buckets=[]) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}

}  // namespace sketchlayers
