// What the CPU's kernels are made of, against plain loops: where positions of a convolution meet,
// the inner loops of every instruction set that this processor has, and the planner's constants.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/sampling.h"
#include "cpu/two_sided_conv.h"
#include "cpu/vector_kernels.h"
#include "geometry.h"
#include "ops/sign_matrix.h"
#include "ops/sk_conv2d.h"
#include "ops/sk_weight.h"
#include "plan/cost_model.h"
#include "signs.h"

namespace sketchlayers {
namespace {

// ------------------------------------------------------------------------------------ geometry

int64_t output_size(int64_t input, int64_t kernel, int64_t stride, int64_t padding,
                    int64_t dilation) {
  const int64_t room = input + 2 * padding - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

std::vector<ConvAxis> axes(const std::vector<int64_t>& inputs, const std::vector<int64_t>& kernels,
                           int64_t most_stride, int64_t most_padding, int64_t most_dilation) {
  std::vector<ConvAxis> result;
  for (const int64_t input : inputs) {
    for (const int64_t kernel : kernels) {
      for (int64_t stride = 1; stride <= most_stride; ++stride) {
        for (int64_t padding = 0; padding <= most_padding; ++padding) {
          for (int64_t dilation = 1; dilation <= most_dilation; ++dilation) {
            const int64_t output = output_size(input, kernel, stride, padding, dilation);
            if (output > 0) {
              result.push_back({input, output, kernel, stride, padding, dilation});
            }
          }
        }
      }
    }
  }
  return result;
}

std::string describe(const ConvAxis& axis) {
  std::ostringstream text;
  text << "input " << axis.input << ", kernel " << axis.kernel << ", stride " << axis.stride
       << ", padding " << axis.padding << ", dilation " << axis.dilation;
  return text.str();
}

TEST(Geometry, DivisionRoundsDown) {
  for (int64_t value = -20; value <= 20; ++value) {
    for (int64_t divisor = 1; divisor <= 5; ++divisor) {
      const double exact = static_cast<double>(value) / static_cast<double>(divisor);
      EXPECT_EQ(floor_divide(value, divisor), static_cast<int64_t>(std::floor(exact)));
      EXPECT_EQ(floor_divide(value, divisor) * divisor + floor_modulo(value, divisor), value);
      EXPECT_GE(floor_modulo(value, divisor), 0);
      EXPECT_LT(floor_modulo(value, divisor), divisor);
    }
  }
}

TEST(Geometry, GridsPartitionAnAxis) {
  for (int64_t size = 0; size <= 9; ++size) {
    for (int64_t stride = 1; stride <= 5; ++stride) {
      for (int64_t phase = 0; phase < stride; ++phase) {
        int64_t count = 0;
        for (int64_t position = 0; position < size; ++position) count += position % stride == phase;
        EXPECT_EQ(grid_size(size, phase, stride), count);
      }
    }
  }
}

TEST(Geometry, TapsAreOffsetsWithinAGrid) {
  for (const ConvAxis& axis : axes({1, 2, 3, 5, 8, 11}, {1, 2, 3, 5, 7}, 4, 6, 4)) {
    for (int64_t tap = 0; tap < axis.kernel; ++tap) {
      const AxisTap forward = forward_tap(axis, tap);
      ASSERT_GE(forward.phase, 0) << describe(axis);
      ASSERT_LT(forward.phase, axis.stride) << describe(axis);
      for (int64_t output = 0; output < axis.output; ++output) {
        ASSERT_EQ((output + forward.offset) * axis.stride + forward.phase,
                  output * axis.stride - axis.padding + tap * axis.dilation)
            << describe(axis);
      }
      for (int64_t position = 0; position < axis.input; ++position) {
        const int64_t phase = position % axis.stride;
        const int64_t index = position / axis.stride;
        // Outputs beyond the image's edge read it too, if there were any.
        std::vector<int64_t> readers;
        for (int64_t output = -40; output < axis.output + 40; ++output) {
          if (output * axis.stride - axis.padding + tap * axis.dilation == position) {
            readers.push_back(output);
          }
        }
        ASSERT_EQ(is_read_through(axis, phase, tap), !readers.empty()) << describe(axis);
        if (readers.empty()) continue;
        ASSERT_EQ(readers, std::vector{index + adjoint_offset(axis, phase, tap)}) << describe(axis);
      }
    }
  }
}

// ------------------------------------------------------------------------------------ sampling

// An output, an input, and the filter's position that connects them.
using Meeting = std::tuple<int64_t, int64_t, int64_t>;

std::vector<Meeting> naive_meetings(const ConvAxis& rows, const ConvAxis& columns) {
  std::vector<Meeting> result;
  for (int64_t y = 0; y < rows.output; ++y) {
    for (int64_t x = 0; x < columns.output; ++x) {
      for (int64_t i = 0; i < rows.kernel; ++i) {
        for (int64_t j = 0; j < columns.kernel; ++j) {
          const int64_t row = y * rows.stride - rows.padding + i * rows.dilation;
          const int64_t column = x * columns.stride - columns.padding + j * columns.dilation;
          if (row < 0 || row >= rows.input || column < 0 || column >= columns.input) continue;
          result.emplace_back(y * columns.output + x, row * columns.input + column,
                              i * columns.kernel + j);
        }
      }
    }
  }
  std::sort(result.begin(), result.end());
  return result;
}

// Pixels of an image with `width` columns that a sampling's target index, or a source's, stands
// for.
int64_t pixel(const cpu::ImageGrid& grid, int64_t row_step, int64_t column_step, int64_t row,
              int64_t column, int64_t width) {
  return (row * row_step + grid.row_phase) * width + column * column_step + grid.column_phase;
}

void add_meetings(const cpu::Sampling& sampling, int64_t target_width, int64_t source_width,
                  bool adjoint, std::vector<Meeting>& meetings) {
  for (int64_t r = 0; r < sampling.target.rows; ++r) {
    for (int64_t c = 0; c < sampling.target.columns; ++c) {
      const int64_t written = pixel(sampling.target, sampling.target_row_step,
                                    sampling.target_column_step, r, c, target_width);
      for (const cpu::Tap& tap : sampling.taps) {
        const cpu::ImageGrid& source = sampling.sources.at(static_cast<size_t>(tap.source));
        const int64_t row = r + tap.row;
        const int64_t column = c + tap.column;
        if (row < 0 || row >= source.rows || column < 0 || column >= source.columns) continue;
        const int64_t read = pixel(source, sampling.source_row_step, sampling.source_column_step,
                                   row, column, source_width);
        meetings.emplace_back(adjoint ? read : written, adjoint ? written : read, tap.filter);
      }
    }
  }
}

class Samplings : public testing::Test {
 protected:
  Samplings() {
    const std::vector<ConvAxis> all = axes({1, 4, 7}, {1, 2, 3}, 3, 2, 2);
    for (size_t i = 0; i < all.size(); ++i) {
      pairs_.emplace_back(all[i], all[(i * 37 + 11) % all.size()]);  // no two axes alike
    }
  }

  std::vector<std::pair<ConvAxis, ConvAxis>> pairs_;
};

TEST_F(Samplings, ForwardFindsEveryPairOnce) {
  for (const auto& [rows, columns] : pairs_) {
    std::vector<Meeting> found;
    add_meetings(cpu::forward_sampling(rows, columns), columns.output, columns.input, false, found);
    std::sort(found.begin(), found.end());
    ASSERT_EQ(found, naive_meetings(rows, columns)) << describe(rows) << " x " << describe(columns);
  }
}

TEST_F(Samplings, AdjointFindsEveryPairOnce) {
  for (const auto& [rows, columns] : pairs_) {
    std::vector<Meeting> found;
    std::vector<int64_t> written;
    for (const cpu::Sampling& sampling : cpu::adjoint_samplings(rows, columns)) {
      add_meetings(sampling, columns.input, columns.output, true, found);
      for (int64_t r = 0; r < sampling.target.rows; ++r) {
        for (int64_t c = 0; c < sampling.target.columns; ++c) {
          written.push_back(pixel(sampling.target, sampling.target_row_step,
                                  sampling.target_column_step, r, c, columns.input));
        }
      }
    }
    std::sort(found.begin(), found.end());
    ASSERT_EQ(found, naive_meetings(rows, columns)) << describe(rows) << " x " << describe(columns);
    // Pixels that no output reads are written too: their gradient is zero.
    std::sort(written.begin(), written.end());
    ASSERT_EQ(static_cast<int64_t>(written.size()), rows.input * columns.input);
    for (size_t i = 0; i < written.size(); ++i) ASSERT_EQ(written[i], static_cast<int64_t>(i));
  }
}

TEST(TwoSidedConv, TapsFarApartDoNotFit) {
  cpu::TwoSidedConv conv{1, 1, 3, 8, 4, {{2, {}, {}}, {2, {}, {}}}};
  const auto fits = [&](int64_t distance) {
    const ConvAxis axis{8, 4, 2, 2, distance, 2 * distance};
    return cpu::fits(conv, cpu::forward_sampling(axis, axis));
  };
  EXPECT_TRUE(fits(1));
  for (int power = 20; power < 40; ++power) EXPECT_FALSE(fits(int64_t{1} << power)) << power;
}

// A stride of many grids: each thread takes its own.
TEST(TwoSidedConv, GradientThroughALargeStride) {
  const int threads = at::get_num_threads();
  at::set_num_threads(2);
  const at::Tensor s1 = at::randn({2, 3, 5, 5}), s2 = at::randn({7, 2, 5, 5});
  const at::Tensor u1 = sign_matrix(3, 0, 2, 7).unsqueeze(0);
  const at::Tensor u2 = sign_matrix(3, 1, 2, 3).unsqueeze(0);
  const SketchArguments channel{"channel"};
  const ConvArguments conv{{9, 11}, {1, 2}, {1, 1}, 1};
  const at::Tensor input = at::randn({2, 3, 29, 31});
  const at::Tensor weight = sk_weight(s1, s2, u1, u2, channel);
  const at::Tensor grad = at::randn({2, 7, 3, 3});
  const at::Tensor actual = std::get<0>(sk_conv2d_factored_backward(
      {grad, input, {s1, s2, u1, u2}, {true, false, false}, conv, channel}));
  const at::Tensor expected = std::get<0>(
      at::convolution_backward(grad, input, weight, std::nullopt, conv.stride, conv.padding,
                               conv.dilation, false, {0, 0}, 1, {true, false, false}));
  at::set_num_threads(threads);
  EXPECT_TRUE(at::allclose(actual, expected, 1e-4, 1e-4));
}

// ------------------------------------------------------------------------------ vector kernels

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::mt19937& generator() {
  static std::mt19937 instance(7);
  return instance;
}

// Small whole numbers: sums of them are exact in any order.
float any_number() { return static_cast<float>(static_cast<int>(generator()() % 9) - 4); }

// Memory of exactly so many elements, ending where the next page may not be touched, or starting
// where the one before may not.
template <typename T>
class Guarded {
 public:
  explicit Guarded(int64_t size, bool at_start = false) : size_(size) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t bytes = static_cast<size_t>(size) * sizeof(T);
    const size_t inner = (bytes + page - 1) / page * page;
    mapped_ = inner + 2 * page;
    void* memory = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<char*>(memory);
    if (inner > 0 && mprotect(memory_ + page, inner, PROT_READ | PROT_WRITE) != 0) {
      throw std::bad_alloc();
    }
    data_ = reinterpret_cast<T*>(memory_ + page + (at_start ? 0 : inner - bytes));
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() { munmap(memory_, mapped_); }

  Guarded& fill(T value) {
    std::fill(data_, data_ + size_, value);
    return *this;
  }
  template <typename Next>
  Guarded& generate(Next& next) {
    for (int64_t i = 0; i < size_; ++i) data_[i] = static_cast<T>(next());
    return *this;
  }
  T* data() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  int64_t size_;
  size_t mapped_;
  char* memory_;
  T* data_;
};

using Floats = Guarded<float>;

std::vector<const cpu::VectorKernels*> runnable_kernels() {
  std::vector<const cpu::VectorKernels*> result{&cpu::portable_kernels()};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    result.push_back(&cpu::avx2_kernels());
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
      result.push_back(&cpu::avx512_kernels());
    }
  }
#endif
  return result;
}

class VectorKernels : public testing::TestWithParam<const cpu::VectorKernels*> {
 protected:
  const cpu::VectorKernels& kernels_ = *GetParam();
};

INSTANTIATE_TEST_SUITE_P(Cpu, VectorKernels, testing::ValuesIn(runnable_kernels()),
                         [](const auto& info) {
                           return "Lanes" + std::to_string(4 << info.index);
                         });

// A part of a product, with memory for exactly what it may read.
struct Part {
  // Offsets of taps in b are `step` floats apart.
  Part(int64_t rows, int64_t columns, int64_t outer_, int64_t taps_, int64_t step, bool w_by_row,
       bool reversed)
      : outer(outer_),
        taps(taps_),
        w_row(w_by_row ? outer * taps : 1),
        w_outer(w_by_row ? taps : rows * taps),
        b_outer((taps - 1) * step + columns),
        w(rows * outer * taps),
        b(outer * b_outer) {
    w.generate(any_number);
    b.generate(any_number);
    for (int64_t t = 0; t < taps; ++t) {
      w_tap.push_back(static_cast<int32_t>(w_by_row ? t : t * rows));
      b_tap.push_back(static_cast<int32_t>((reversed ? taps - 1 - t : t) * step));
    }
  }

  cpu::Product product() const {
    return {w.data(), w_row, w_outer, w_tap.data(), b.data(), b_outer, b_tap.data(), outer, taps};
  }

  int64_t outer, taps, w_row, w_outer, b_outer;
  Floats w, b;
  std::vector<int32_t> w_tap, b_tap;
};

bool counts(const cpu::Product& part, int64_t tap, int64_t column) {
  if (!part.mask) return true;
  const uint16_t word = part.mask[tap * part.mask_tap + column / cpu::kColumnStep];
  return (word >> (column % cpu::kColumnStep)) & 1;
}

double expected_sum(const std::vector<cpu::Product>& parts, int64_t row, int64_t column) {
  double sum = 0;
  for (const cpu::Product& part : parts) {
    for (int64_t o = 0; o < part.outer; ++o) {
      for (int64_t t = 0; t < part.taps; ++t) {
        if (!counts(part, t, column)) continue;
        sum += static_cast<double>(part.w[row * part.w_row + o * part.w_outer + part.w_tap[t]]) *
               static_cast<double>(part.b[o * part.b_outer + part.b_tap[t] + column]);
      }
    }
  }
  return sum;
}

void check_product(const cpu::VectorKernels& kernels, const std::vector<cpu::Product>& parts,
                   int64_t rows, int64_t columns, bool with_bias, bool add) {
  constexpr int64_t kGap = 5;  // between rows of the result
  const int64_t out_row = columns + kGap;
  Floats out(rows * out_row - kGap);
  Floats bias(rows);
  bias.generate(any_number);
  out.generate(any_number);
  if (!add) {
    for (int64_t m = 0; m < rows; ++m) std::fill_n(&out[m * out_row], columns, kNan);
  }
  const std::vector<float> before(out.data(), out.data() + rows * out_row - kGap);
  kernels.product(parts.data(), static_cast<int>(parts.size()), rows, columns,
                  with_bias ? bias.data() : nullptr, out.data(), out_row, add);
  for (int64_t i = 0; i < rows * out_row - kGap; ++i) {
    const int64_t m = i / out_row;
    const int64_t n = i % out_row;
    double expected = static_cast<double>(before[static_cast<size_t>(i)]);
    if (n < columns) {
      expected = expected_sum(parts, m, n) + (add ? expected : 0.0) +
                 static_cast<double>(with_bias ? bias[m] : 0.0f);
    }
    ASSERT_EQ(static_cast<double>(out[i]), expected)
        << rows << " x " << columns << ", row " << m << ", column " << n;
  }
}

// Calls body(rows, columns) for every number of rows, and of steps in a row.
template <typename Body>
void for_sizes(const Body& body) {
  for (int64_t rows = 1; rows <= 30; ++rows) {
    for (int64_t columns = cpu::kColumnStep; columns <= 128; columns += cpu::kColumnStep) {
      body(rows, columns);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST_P(VectorKernels, ProductOfMatrices) {
  for_sizes([&](int64_t rows, int64_t columns) {
    const Part part(rows, columns, 7, 1, 0, rows % 2 == 0, false);
    check_product(kernels_, {part.product()}, rows, columns, rows % 3 == 0, rows % 5 < 2);
  });
}

TEST_P(VectorKernels, ProductOfTwoPartsWithTaps) {
  for_sizes([&](int64_t rows, int64_t columns) {
    const Part first(rows, columns, 3, 5, 7, true, rows % 2 == 0);
    const Part second(rows, columns, 9, 1, 0, false, false);
    std::vector<cpu::Product> parts{first.product(), second.product()};
    if (rows % 3 == 0) std::swap(parts[0], parts[1]);
    check_product(kernels_, parts, rows, columns, rows % 2 == 1, rows % 5 < 3);
  });
}

TEST_P(VectorKernels, ProductOfNothingIsTheBias) {
  for (const bool add : {false, true}) {
    const Part empty(3, 32, 0, 1, 0, true, false);
    check_product(kernels_, {empty.product()}, 3, 32, true, add);
    const Part full(3, 32, 2, 3, 1, true, false);
    cpu::Product no_taps = full.product();
    no_taps.taps = 0;
    check_product(kernels_, {no_taps, full.product()}, 3, 32, true, add);
  }
}

// Taps reach over both ends of each channel. What masks leave out is no number, and before the
// first channel and after the last one there is no memory.
TEST_P(VectorKernels, MasksKeepFromReading) {
  if (!kernels_.takes_masks) GTEST_SKIP() << "has no masks";
  for (const bool at_start : {false, true}) {
    for_sizes([&](int64_t rows, int64_t columns) {
      const int64_t width = columns - rows % 16;  // the last step may be broken
      const int64_t outer = 3;
      const int64_t gap = 40;
      const std::vector<int32_t> offsets{-33, -16, -5, 0, 1, 18};
      const int64_t taps = static_cast<int64_t>(offsets.size());
      const Floats b(outer * (width + gap) - gap, at_start);
      for (int64_t i = 0; i < outer * (width + gap) - gap; ++i) {
        b[i] = i % (width + gap) < width ? any_number() : kNan;
      }
      Floats w(rows * outer * taps);
      w.generate(any_number);
      std::vector<int32_t> w_tap;
      const int64_t steps = columns / cpu::kColumnStep;
      Guarded<uint16_t> masks(taps * steps);
      masks.fill(0);
      for (int64_t t = 0; t < taps; ++t) {
        w_tap.push_back(static_cast<int32_t>(t));
        for (int64_t n = 0; n < columns; ++n) {
          const int64_t position = n + offsets[static_cast<size_t>(t)];
          // Holes within a row too.
          if (position < 0 || position >= width || generator()() % 8 == 0) continue;
          masks[t * steps + n / 16] |= static_cast<uint16_t>(1u << (n % 16));
        }
      }
      const cpu::Product masked{w.data(), outer * taps, taps,           w_tap.data(),
                                b.data(), width + gap,  offsets.data(), outer,
                                taps,     masks.data(), steps};
      const Part other(rows, columns, 2, 1, 0, true, false);
      std::vector<cpu::Product> parts{masked};
      if (rows % 2 == 0) parts.push_back(other.product());
      check_product(kernels_, parts, rows, columns, rows % 3 == 0, rows % 5 < 2);
    });
    if (HasFatalFailure()) return;
  }
}

TEST_P(VectorKernels, CopyRows) {
  for (int64_t columns = 0; columns <= 70; ++columns) {
    for (int64_t gap = 0; gap <= 3; gap += 3) {
      const int64_t rows = 1 + columns % 4;
      const int64_t before = columns % 5;
      const int64_t after = columns % 3;
      const int64_t in_row = columns + gap;
      const int64_t width = before + columns + after;
      const int64_t out_row = width + gap;
      Floats in(rows * in_row - gap);
      Floats out(rows * out_row - gap);
      in.generate(any_number);
      out.fill(99);
      kernels_.copy_rows(in.data(), in_row, rows, columns, out.data(), out_row, before, after);
      for (int64_t i = 0; i < rows * out_row - gap; ++i) {
        const int64_t n = i % out_row;
        const bool inside = n >= before && n < before + columns;
        const float expected = n >= width ? 99 : inside ? in[i / out_row * in_row + n - before] : 0;
        ASSERT_EQ(out[i], expected) << columns << " columns, element " << i;
      }
    }
  }
}

TEST_P(VectorKernels, Transpose) {
  for (int64_t rows = 1; rows <= 35; ++rows) {
    for (int64_t columns = 1; columns <= 35; ++columns) {
      for (const bool padded : {false, true}) {
        const int64_t in_row = columns + rows % 3;
        const int64_t width = padded ? cpu::whole_steps(rows) : rows;
        const int64_t out_row = width + columns % 3;
        Floats in((rows - 1) * in_row + columns);
        Floats out((columns - 1) * out_row + width);
        in.generate(any_number);
        out.fill(99);
        kernels_.transpose(in.data(), in_row, rows, columns, out.data(), out_row, padded);
        for (int64_t i = 0; i < (columns - 1) * out_row + width; ++i) {
          const int64_t m = i % out_row;
          if (padded && m >= rows && m < width) continue;  // may hold anything
          const float expected = m < rows ? in[m * in_row + i / out_row] : 99;
          ASSERT_EQ(out[i], expected)
              << rows << " x " << columns << ", element " << i << (padded ? ", padded" : "");
        }
      }
    }
  }
}

TEST_P(VectorKernels, ExpandSigns) {
  constexpr int64_t kColumns = 300;
  Guarded<int32_t> packed(sign_words(kColumns));
  packed.generate(generator());
  for (int64_t start = 0; start < kColumns; start += cpu::kColumnStep) {
    for (int64_t count = 1; start + count <= kColumns; count += 1 + count / 9) {
      Floats out(cpu::whole_steps(count));
      kernels_.expand_signs(packed.data(), start, count, 0.75f, out.data());
      for (int64_t i = 0; i < cpu::whole_steps(count); ++i) {
        ASSERT_EQ(out[i], 0.75f * sign_at<float>(packed.data(), start + i)) << start << ", " << i;
      }
    }
  }
}

// Rows of numbers, filled up with zeros to whole steps.
void fill_padded(const Floats& rows, int64_t count, int64_t length) {
  const int64_t row = cpu::whole_steps(length);
  for (int64_t i = 0; i < count * row; ++i) rows[i] = i % row < length ? any_number() : 0;
}

const std::vector<int64_t>& lengths() {
  static const std::vector<int64_t> all{1, 3, 4, 5, 8, 9, 15, 16, 17, 24, 31, 33, 47, 129, 150};
  return all;
}

TEST_P(VectorKernels, SketchVectors) {
  for (const int64_t length : lengths()) {
    for (int64_t rows = 1; rows <= 9; ++rows) {
      for (int64_t batch = 1; batch <= cpu::kFewVectors; ++batch) {
        const int64_t words = sign_words(length);
        const int64_t x_row = cpu::whole_steps(length);
        const int64_t s_row = length + rows % 2;
        const int64_t out_row = rows + 2;
        Floats s((rows - 1) * s_row + length), x(batch * x_row);
        Floats dense((batch - 1) * out_row + rows), signed_((batch - 1) * out_row + rows);
        Guarded<int32_t> signs(rows * words);
        s.generate(any_number);
        signs.generate(generator());
        fill_padded(x, batch, length);
        dense.fill(99);
        signed_.fill(99);
        kernels_.sketch_vectors(s.data(), s_row, signs.data(), words, rows, length, x.data(), x_row,
                                batch, dense.data(), signed_.data(), out_row);
        for (int64_t i = 0; i < (batch - 1) * out_row + rows; ++i) {
          const int64_t j = i % out_row;
          double sums[2] = {0, 0};
          for (int64_t k = 0; k < length && j < rows; ++k) {
            const double value = static_cast<double>(x[i / out_row * x_row + k]);
            sums[0] += static_cast<double>(s[j * s_row + k]) * value;
            sums[1] += sign_at<double>(signs.data() + j * words, k) * value;
          }
          ASSERT_EQ(static_cast<double>(dense[i]), j < rows ? sums[0] : 99) << length << ", " << i;
          ASSERT_EQ(static_cast<double>(signed_[i]), j < rows ? sums[1] : 99)
              << length << ", " << i;
        }
      }
    }
  }
}

TEST_P(VectorKernels, CombineVectors) {
  constexpr int64_t kOutputs = 77;
  for (const int64_t rank : lengths()) {
    for (int64_t batch = 1; batch <= cpu::kFewVectors; ++batch) {
      for (int64_t first = 0; first < kOutputs; first += cpu::kColumnStep) {
        const int64_t words = sign_words(kOutputs);
        const int64_t s_row = rank + batch % 2;
        const int64_t in_row = cpu::whole_steps(rank);
        Floats s((kOutputs - 1) * s_row + rank), bias(kOutputs);
        Floats dense(batch * in_row), signed_((batch - 1) * in_row + rank);
        Floats y(batch * kOutputs);
        Guarded<int32_t> signs(rank * words);
        s.generate(any_number);
        bias.generate(any_number);
        signs.generate(generator());
        signed_.generate(any_number);
        fill_padded(dense, batch, rank);
        y.fill(99);
        const int64_t count = std::min<int64_t>(first % 3 == 0 ? 48 : 21, kOutputs - first);
        const bool with_bias = rank % 2 == 1;
        kernels_.combine_vectors(s.data(), s_row, signs.data(), words, first, count, rank,
                                 dense.data(), signed_.data(), in_row, batch,
                                 with_bias ? bias.data() : nullptr, y.data(), kOutputs);
        for (int64_t i = 0; i < batch * kOutputs; ++i) {
          const int64_t o = i % kOutputs;
          const int64_t b = i / kOutputs;
          double expected = 99;
          if (o >= first && o < first + count) {
            expected = with_bias ? static_cast<double>(bias[o]) : 0;
            for (int64_t j = 0; j < rank; ++j) {
              expected += static_cast<double>(s[o * s_row + j]) *
                              static_cast<double>(dense[b * in_row + j]) +
                          sign_at<double>(signs.data() + j * words, o) *
                              static_cast<double>(signed_[b * in_row + j]);
            }
          }
          ASSERT_EQ(static_cast<double>(y[i]), expected)
              << "rank " << rank << ", batch " << batch << ", output " << o;
        }
      }
    }
  }
}

// -------------------------------------------------------------------------------- cost model

constexpr CostKey kChannel{Processor::kCpu, Precision::kFloat32, Work::kFactored, Kind::kChannel,
                           false};
constexpr CostKey kLinear{Processor::kCuda, Precision::kBFloat16, Work::kDense, Kind::kLinear,
                          false};

void read(CostModel& model, const std::string& lines) {
  std::istringstream text(lines);
  model.read(text);
}

bool equal(const Cost& a, const Cost& b) {
  return a.call == b.call && a.multiply_add == b.multiply_add && a.element == b.element &&
         a.weight == b.weight;
}

TEST(CostModel, EveryKeyHasItsOwnLine) {
  // `cpu` stands for other processors, too, so it comes first.
  const std::vector<std::string> processors{"cpu", "onednn", "amx", "cuda"},
      precisions{"float32", "bfloat16", "float16", "float64"},
      works{"dense", "form", "factored", "panels"},
      kinds{"linear", "pointwise", "spatial", "channel"}, formats{"", " channels_last"};
  CostModel model;
  std::vector<CostKey> keys;
  std::ostringstream lines;
  for (size_t p = 0; p < processors.size(); ++p) {
    for (size_t t = 0; t < precisions.size(); ++t) {
      for (size_t w = 0; w < works.size(); ++w) {
        const std::string words = processors[p] + " " + precisions[t] + " " + works[w] + " ";
        for (size_t k = 0; k < kinds.size(); ++k) {
          lines << words << kinds[k] << " training " << 2 + k << " 0 0 0\n";
          for (size_t f = 0; f < formats.size(); ++f) {
            lines << words << kinds[k] << formats[f] << ' ' << keys.size() << " 0 0 0\n";
            keys.push_back({static_cast<Processor>(p), static_cast<Precision>(t),
                            static_cast<Work>(w), static_cast<Kind>(k), f == 1});
            const bool has_panels =
                processors[p] == "amx" && precisions[t] == "bfloat16" && kinds[k] != "spatial";
            if (works[w] == "panels" && !has_panels) continue;
            for (const bool training : {false, true}) {
              const Cost builtin = model.cost(keys.back(), training);
              EXPECT_GT(builtin.call + builtin.multiply_add + builtin.element + builtin.weight, 0)
                  << words << kinds[k];
            }
          }
        }
      }
    }
  }
  read(model, lines.str());
  for (size_t i = 0; i < keys.size(); ++i) {
    EXPECT_EQ(model.cost(keys[i], false).call, static_cast<double>(i));
    const double grown = 2 + static_cast<double>(keys[i].kind);
    EXPECT_EQ(model.cost(keys[i], true).call, grown * static_cast<double>(i));
  }
}

TEST(CostModel, WordsStandForSeveral) {
  CostModel model;
  read(model,
       "cpu float factored conv 1 2 3 4\n"
       "amx half factored channel channels_last 5 6 7 8\n"
       "all all factored all training 3 3 3 3\n");
  const auto call = [&](Processor processor, Precision precision, Kind kind, bool channels_last) {
    return model.cost({processor, precision, Work::kFactored, kind, channels_last}, false).call;
  };
  for (const auto precision : {Precision::kFloat32, Precision::kBFloat16, Precision::kFloat16}) {
    for (const auto kind : {Kind::kSpatial, Kind::kChannel}) {
      EXPECT_EQ(call(Processor::kCpu, precision, kind, true), 1);
      EXPECT_EQ(call(Processor::kOneDnn, precision, kind, false), 1);
    }
  }
  EXPECT_EQ(call(Processor::kAmx, Precision::kFloat16, Kind::kChannel, true), 5);
  EXPECT_EQ(call(Processor::kAmx, Precision::kFloat16, Kind::kChannel, false), 1);
  EXPECT_EQ(call(Processor::kAmx, Precision::kFloat32, Kind::kChannel, true), 1);
  EXPECT_LT(call(Processor::kCuda, Precision::kFloat32, Kind::kChannel, true), 1);
  EXPECT_TRUE(equal(model.cost(kChannel, true), {3, 6, 9, 12}));
}

TEST(CostModel, ConstantsOfThisMachineAreToldFromOthers) {
  CostModel model;
  EXPECT_FALSE(model.is_of_this_machine(kChannel));
  read(model, "cpu float32 factored linear 1 2 3 4");
  EXPECT_TRUE(model.is_of_this_machine(kChannel));
  EXPECT_FALSE(model.is_of_this_machine(kLinear));
}

TEST(CostModel, SecondsAreASum) {
  const Cost cost{1, 2, 3, 4};
  EXPECT_EQ(cost.seconds({10, 100, 1000}), 1 + 20 + 300 + 4000);
}

TEST(CostModel, ReadsLinesAndComments) {
  CostModel model;
  const Cost other = model.cost(kLinear, false);
  read(model,
       "# a comment\n"
       "\n"
       "   \t\n"
       "  cpu float32 factored channel 1 2e-3\t3.5 0  # and another\n");
  EXPECT_TRUE(equal(model.cost(kChannel, false), {1, 2e-3, 3.5, 0}));
  EXPECT_TRUE(equal(model.cost(kLinear, false), other));
}

TEST(CostModel, LaterLinesReplaceEarlierOnes) {
  CostModel model;
  read(model,
       "cuda half dense linear 1 2 3 4\n"
       "cuda half dense linear 5 6 7 8");  // no newline at the end
  EXPECT_TRUE(equal(model.cost(kLinear, false), {5, 6, 7, 8}));
}

TEST(CostModel, WrongLinesChangeNothing) {
  const char* const wrong[] = {
      "cpu",
      "cpu float32 factored channel",
      "cpu float32 factored channel 1 2 3",
      "cpu float32 factored channel 1 2 3 4 5",
      "cpu float32 factored channel 1 2 3 four",
      "cpu float32 factored channel 1 2 3 4x",
      "cpu float32 factored channel -1 2 3 4",
      "cpu float32 factored channel 1 2 3 nan",
      "cpu float32 factored channel 1 2 inf 4",
      "cpu float32 factored channel 1 2 1e999 4",
      "cpu float32 factored channel channels 1 2 3 4",
      "cpu float32 factored channel training channels_last 1 2 3 4",
      "cpu float32 factored 1 2 3 4",
      "tpu float32 factored channel 1 2 3 4",
      "cpu float8 factored channel 1 2 3 4",
      "cpu float32 factored depth 1 2 3 4",
      "cpu float32 folded channel 1 2 3 4",
      "cpu float32 channel factored forward 1 2 3 4",
  };
  for (const char* line : wrong) {
    CostModel model;
    const Cost before = model.cost(kLinear, false);
    EXPECT_THROW(read(model, std::string("cuda half dense linear 1 2 3 4\n") + line),
                 std::invalid_argument)
        << line;
    EXPECT_TRUE(equal(model.cost(kLinear, false), before)) << line;
  }
}

TEST(CostModel, ThePlannersIsReplacedAsAWhole) {
  const CostModel& before = cost_model();
  const Cost builtin = before.cost(kChannel, false);
  load_cost_model("cpu float32 factored channel 1 2 3 4");
  EXPECT_TRUE(equal(cost_model().cost(kChannel, false), {1, 2, 3, 4}));
  EXPECT_TRUE(equal(before.cost(kChannel, false), builtin));  // for calls that still read it
  EXPECT_THROW(load_cost_model("nonsense"), std::invalid_argument);
  EXPECT_TRUE(equal(cost_model().cost(kChannel, false), {1, 2, 3, 4}));
  reset_cost_model();
  EXPECT_TRUE(equal(cost_model().cost(kChannel, false), builtin));
}

}  // namespace
}  // namespace sketchlayers
