#include "ops/hashed_weight.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "cpu/allocate.h"
#include "hashes.h"

namespace sketchlayers {
namespace {

constexpr int kBlocks = 16;  // hashed at once, in the lanes of vector instructions
constexpr int kHashes = kBlocks * kHashesPerBlock;
constexpr int64_t kGrain = 1 << 14;  // entries that are worth a thread

// Compiled for several instruction sets, of which the loader picks what the processor has. The
// thread sanitizer would be called by what picks, before it has begun.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_THREAD__)
#define SKETCHLAYERS_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define SKETCHLAYERS_CLONES
#endif

using Lanes = uint64_t __attribute__((vector_size(kBlocks * sizeof(uint64_t))));

// The hashes of columns [kHashesPerBlock * first_block, ... + kHashes) of a row: `philox4x32` for
// each block. A lane has a 32-bit word in its lower half, and anything in its upper one.
SKETCHLAYERS_CLONES void hash_blocks(uint64_t seed, uint32_t row, uint32_t first_block,
                                     uint32_t* hashes) {
  constexpr uint64_t kMultiplier0 = 0xD2511F53u;
  constexpr uint64_t kMultiplier1 = 0xCD9E8D57u;
  constexpr uint32_t kWeyl0 = 0x9E3779B9u;
  constexpr uint32_t kWeyl1 = 0xBB67AE85u;
  constexpr uint64_t kLow = 0xFFFFFFFFu;
  Lanes word[4] = {};
  for (int i = 0; i < kBlocks; ++i) word[0][i] = first_block + static_cast<uint32_t>(i);
  word[1] += row;
  word[3] += kHashFormatVersion;
  uint32_t key0 = static_cast<uint32_t>(seed);
  uint32_t key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const Lanes product0 = (word[0] & kLow) * kMultiplier0;
    const Lanes product1 = (word[2] & kLow) * kMultiplier1;
    word[0] = (product1 >> 32) ^ word[1] ^ key0;
    word[1] = product1;
    word[2] = (product0 >> 32) ^ word[3] ^ key1;
    word[3] = product0;
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  uint64_t parts[4][kBlocks];
  std::memcpy(parts, word, sizeof(parts));
  for (int i = 0; i < kBlocks; ++i) {
    for (int j = 0; j < kHashesPerBlock; ++j) {
      hashes[kHashesPerBlock * i + j] = static_cast<uint32_t>(parts[j][i]);
    }
  }
}

// Calls body(place in the matrix, place in the values, is negative) for the entries of some rows.
class Entries {
 public:
  Entries(const at::Tensor& seed, int64_t columns, const HashTables& tables)
      : seed_(static_cast<uint64_t>(*seed.const_data_ptr<int64_t>())),
        columns_(columns),
        tables_(tables) {}

  template <typename Body>
  void visit(int64_t first_row, int64_t last_row, const Body& body) const {
    const int64_t taps = tables_.taps();
    const int64_t* first = tables_.first.data();
    const int64_t* buckets = tables_.buckets.data();
    uint32_t hashes[kHashes];
    for (int64_t row = first_row; row < last_row; ++row) {
      const int64_t place = row * columns_;
      int64_t tap = 0;
      for (int64_t begin = 0; begin < columns_; begin += kHashes) {
        hash_blocks(seed_, static_cast<uint32_t>(row),
                    static_cast<uint32_t>(begin / kHashesPerBlock), hashes);
        const int count = static_cast<int>(std::min<int64_t>(kHashes, columns_ - begin));
        for (int i = 0; i < count; ++i) {
          const uint32_t bucket = hash_bucket(hashes[i], static_cast<uint32_t>(buckets[tap]));
          body(place + begin + i, first[tap] + bucket, hash_is_negative(hashes[i]));
          if (++tap == taps) tap = 0;
        }
      }
    }
  }

 private:
  uint64_t seed_;
  int64_t columns_;
  const HashTables& tables_;
};

// Without a branch, which a processor could not predict.
template <typename T>
T sign(bool negative) {
  return static_cast<T>(1 - 2 * static_cast<int>(negative));
}

int64_t rows_of_grain(int64_t columns) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, columns));
}

at::Tensor hashed_weight_cpu(const at::Tensor& values, const at::Tensor& seed, int64_t rows,
                             int64_t columns, at::IntArrayRef first, at::IntArrayRef buckets) {
  const HashTables tables = check_hashed_weight(values, seed, rows, columns, first, buckets);
  const at::Tensor source = values.contiguous();
  const at::Tensor weight =
      cpu::empty_result({rows, columns}, values.options(), at::MemoryFormat::Contiguous);
  if (weight.numel() == 0) return weight;  // though it may have 2^32 rows
  const Entries entries(seed, columns, tables);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, values.scalar_type(), "hashed_weight", [&] {
        using sum_t = at::opmath_type<scalar_t>;
        const scalar_t* in = source.const_data_ptr<scalar_t>();
        scalar_t* out = weight.mutable_data_ptr<scalar_t>();
        at::parallel_for(0, rows, rows_of_grain(columns), [&](int64_t begin, int64_t end) {
          entries.visit(begin, end, [&](int64_t place, int64_t value, bool negative) {
            out[place] = static_cast<scalar_t>(in[value] * sign<sum_t>(negative));
          });
        });
      });
  return weight;
}

// The rows are cut into as many parts as may be summed apart: the copies of the sums together take
// no more memory than a weight in float32. It does not depend on the number of threads, so that the
// result does not.
int64_t parts_of(int64_t rows, int64_t columns, int64_t num_values) {
  constexpr int64_t kMostParts = 16;
  const int64_t affordable = rows * columns / num_values / 2;
  const int64_t worthwhile = rows * columns / kGrain;
  return std::max<int64_t>(1, std::min({kMostParts, affordable, worthwhile, rows}));
}

at::Tensor hashed_weight_backward_cpu(const at::Tensor& grad, const at::Tensor& seed,
                                      int64_t num_values, at::IntArrayRef first,
                                      at::IntArrayRef buckets) {
  const HashTables tables = check_hashed_weight_backward(grad, seed, num_values, first, buckets);
  const at::Tensor matrix = grad.contiguous();
  const int64_t rows = matrix.size(0), columns = matrix.size(1);
  const Entries entries(seed, columns, tables);
  const at::Tensor result = at::empty({num_values}, grad.options());
  if (matrix.numel() == 0) return result.zero_();
  const int64_t parts = parts_of(rows, columns, num_values);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, grad.scalar_type(), "hashed_weight_backward", [&] {
        // A value may have thousands of entries, which are added one by one.
        using sum_t = double;
        const scalar_t* in = matrix.const_data_ptr<scalar_t>();
        scalar_t* out = result.mutable_data_ptr<scalar_t>();
        const auto sums = std::make_unique<sum_t[]>(parts * num_values);  // zeros
        at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
          for (int64_t part = begin; part < end; ++part) {
            sum_t* sum = sums.get() + part * num_values;
            entries.visit(rows * part / parts, rows * (part + 1) / parts,
                          [&](int64_t place, int64_t value, bool negative) {
                            sum[value] += static_cast<sum_t>(in[place]) * sign<sum_t>(negative);
                          });
          }
        });
        at::parallel_for(0, num_values, kGrain, [&](int64_t begin, int64_t end) {
          for (int64_t value = begin; value < end; ++value) {
            sum_t total = 0;
            for (int64_t part = 0; part < parts; ++part) total += sums[part * num_values + value];
            out[value] = static_cast<scalar_t>(total);
          }
        });
      });
  return result;
}

at::Tensor hash_entries_cpu(const at::Tensor& seed, int64_t rows, int64_t columns,
                            int64_t num_values, at::IntArrayRef first, at::IntArrayRef buckets) {
  const HashTables tables = check_hash_entries(seed, rows, columns, num_values, first, buckets);
  const at::Tensor result = at::empty({rows, columns}, seed.options());
  if (result.numel() == 0) return result;
  int64_t* out = result.mutable_data_ptr<int64_t>();
  const Entries entries(seed, columns, tables);
  at::parallel_for(0, rows, rows_of_grain(columns), [&](int64_t begin, int64_t end) {
    entries.visit(begin, end, [&](int64_t place, int64_t value, bool negative) {
      out[place] = negative ? ~value : value;
    });
  });
  return result;
}

TORCH_LIBRARY_IMPL(sketchlayers, CPU, m) {
  m.impl("hashed_weight", TORCH_FN(hashed_weight_cpu));
  m.impl("hashed_weight_backward", TORCH_FN(hashed_weight_backward_cpu));
  m.impl("hash_entries", TORCH_FN(hash_entries_cpu));
}

}  // namespace
}  // namespace sketchlayers
