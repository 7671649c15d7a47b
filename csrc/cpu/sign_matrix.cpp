#include "ops/sign_matrix.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>

#include "signs.h"

namespace sketchlayers {
namespace {

void fill_sign_rows(int32_t* packed, uint64_t seed, uint32_t matrix, int64_t first_row,
                    int64_t last_row, int64_t blocks) {
  for (int64_t row = first_row; row < last_row; ++row) {
    for (int64_t block = 0; block < blocks; ++block) {
      const PhiloxBlock bits =
          sign_block(seed, matrix, static_cast<uint32_t>(row), static_cast<uint32_t>(block));
      std::copy_n(bits.word, kWordsPerBlock, packed + (row * blocks + block) * kWordsPerBlock);
    }
  }
}

at::Tensor sign_matrix_cpu(int64_t seed, int64_t matrix, int64_t rows, int64_t columns,
                           std::optional<at::Device> /*device*/) {
  check_sign_matrix(seed, matrix, rows, columns);
  const int64_t words = sign_words(columns);
  at::Tensor packed = at::empty({rows, words}, at::TensorOptions().dtype(at::kInt));
  if (packed.numel() == 0) return packed;  // though it may have 2^32 rows
  int32_t* data = packed.mutable_data_ptr<int32_t>();
  const int64_t blocks = words / kWordsPerBlock;
  const int64_t grain = std::max<int64_t>(1, 2048 / std::max<int64_t>(1, blocks));
  at::parallel_for(0, rows, grain, [&](int64_t first, int64_t last) {
    fill_sign_rows(data, static_cast<uint64_t>(seed), static_cast<uint32_t>(matrix), first, last,
                   blocks);
  });
  return packed;
}

// Signs leave four at a time, looked up by the four bits that they come from.
template <typename T>
class SignTable {
 public:
  explicit SignTable(double scale) {
    for (int bits = 0; bits < 16; ++bits) {
      for (int i = 0; i < 4; ++i) {
        signs_[bits][i] = static_cast<T>((bits >> i) & 1 ? -scale : scale);
      }
    }
  }

  void unpack_word(T* out, uint32_t word) const {
    for (int i = 0; i < kSignsPerWord / 4; ++i) {
      std::memcpy(out + 4 * i, signs_[(word >> (4 * i)) & 15u], 4 * sizeof(T));
    }
  }

  T sign(uint32_t bit) const { return signs_[bit][0]; }

 private:
  T signs_[16][4];
};

template <typename T>
void unpack_row(T* out, const int32_t* packed_row, int64_t start, int64_t columns,
                const SignTable<T>& table) {
  int64_t column = 0;
  while (column < columns) {
    const int64_t at = start + column;
    const uint32_t word = static_cast<uint32_t>(packed_row[at / kSignsPerWord]);
    const int shift = static_cast<int>(at % kSignsPerWord);
    const int count = static_cast<int>(std::min<int64_t>(kSignsPerWord - shift, columns - column));
    if (count == kSignsPerWord) {
      table.unpack_word(out + column, word);
    } else {
      for (int bit = 0; bit < count; ++bit) {
        out[column + bit] = table.sign((word >> (shift + bit)) & 1u);
      }
    }
    column += count;
  }
}

at::Tensor unpack_signs_cpu(const at::Tensor& packed, int64_t columns, int64_t start,
                            at::ScalarType dtype, double scale) {
  check_unpack_signs(packed, columns, start, dtype);
  const at::Tensor source = packed.contiguous();
  auto sizes = source.sizes().vec();
  const int64_t words = sizes.back();
  sizes.back() = columns;
  at::Tensor out = at::empty(sizes, packed.options().dtype(dtype));
  if (out.numel() == 0) return out;
  const int64_t rows = out.numel() / columns;
  const int32_t* data = source.const_data_ptr<int32_t>();
  const int64_t grain = std::max<int64_t>(1, 16384 / columns);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, dtype, "unpack_signs", [&] {
    scalar_t* target = out.mutable_data_ptr<scalar_t>();
    const SignTable<scalar_t> table(scale);
    at::parallel_for(0, rows, grain, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        unpack_row(target + row * columns, data + row * words, start, columns, table);
      }
    });
  });
  return out;
}

TORCH_LIBRARY_IMPL(sketchlayers, CPU, m) {
  m.impl("sign_matrix", TORCH_FN(sign_matrix_cpu));
  m.impl("unpack_signs", TORCH_FN(unpack_signs_cpu));
}

}  // namespace
}  // namespace sketchlayers
