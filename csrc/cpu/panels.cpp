#include "cpu/panels.h"

#include <ATen/native/CPUBlas.h>

#include <algorithm>

#include "cpu/tasks.h"
#include "cpu/vector_kernels.h"
#include "geometry.h"

namespace sketchlayers::cpu {
namespace {

// A task makes some columns of some rows: as many as the sums of stay in the second-level cache
// with the right side, of some depth at a time. Tiles of micro-kernels are smaller.
constexpr int64_t kSums = 1 << 16;
constexpr int64_t kMostColumns = 256;
constexpr int64_t kMostRows = 512;
constexpr int64_t kTileRows = 64;
constexpr int64_t kTileColumns = 64;
constexpr int64_t kWordBits = 32;
constexpr int64_t kSmall = 1 << 18;  // multiply-adds for which no thread is woken

// Two bfloat16 numbers, one below the other in a column.
constexpr uint32_t kOnes = 0x3f803f80;
constexpr uint32_t kOneAndZero = 0x00003f80;

// The columns of one tile of a panel.
class Packer {
 public:
  Packer(const RightSide& right, int64_t depth, int64_t first, int64_t count, int64_t width)
      : right_(right), depth_(depth), first_(first), count_(count), width_(width) {}

  void pack(uint32_t* out) const {
    if (count_ < width_ || depth_ % kLineNumbers != 0) {
      std::fill_n(out, whole_lines(depth_) / 2 * width_, 0u);
    }
    if (right_.numbers) {
      right_.by_columns ? numbers_by_columns(out) : numbers_by_rows(out);
    } else {
      right_.by_columns ? signs_by_columns(out) : signs_by_rows(out);
    }
  }

 private:
  // Pairs lie together in memory: a transposition of units of 32 bits.
  void numbers_by_columns(uint32_t* out) const {
    const auto* data = reinterpret_cast<const uint16_t*>(right_.numbers) + first_ * right_.row;
    std::vector<uint16_t> even;
    int64_t row = right_.row;
    if (row % 2 != 0 || depth_ % 2 != 0) {
      row = depth_ + depth_ % 2;
      even.resize(static_cast<size_t>(count_ * row));
      for (int64_t n = 0; n < count_; ++n) {
        std::copy_n(data + n * right_.row, depth_, even.data() + n * row);
      }
      data = even.data();
    }
    vector_kernels().transpose(reinterpret_cast<const float*>(data), row / 2, count_,
                               (depth_ + 1) / 2, reinterpret_cast<float*>(out), width_,
                               /*padded=*/false);
  }

  void numbers_by_rows(uint32_t* out) const {
    const auto* data = reinterpret_cast<const uint16_t*>(right_.numbers) + first_;
    for (int64_t k = 0; k + 1 < depth_; k += 2) {
      vector_kernels().interleave(data + k * right_.row, data + (k + 1) * right_.row, count_,
                                  out + k / 2 * width_);
    }
    if (depth_ % 2 == 0) return;
    const uint16_t* last = data + (depth_ - 1) * right_.row;
    uint32_t* target = out + depth_ / 2 * width_;
    for (int64_t n = 0; n < count_; ++n) target[n] = last[n];
  }

  void signs_by_columns(uint32_t* out) const {
    std::vector<uint32_t> words(static_cast<size_t>(count_));
    for (int64_t k = 0; k < depth_; k += kWordBits) {
      for (int64_t n = 0; n < count_; ++n) {
        words[static_cast<size_t>(n)] =
            static_cast<uint32_t>(right_.signs[(first_ + n) * right_.row + k / kWordBits]);
      }
      for (int64_t i = k; i < std::min(k + kWordBits, depth_); i += 2) {
        vector_kernels().sign_pairs_of_words(words.data(), count_, static_cast<int>(i - k),
                                             i + 1 < depth_ ? kOnes : kOneAndZero,
                                             out + i / 2 * width_);
      }
    }
  }

  void signs_by_rows(uint32_t* out) const {
    for (int64_t k = 0; k < depth_; k += 2) {
      const bool both = k + 1 < depth_;
      const int32_t* upper = right_.signs + k * right_.row;
      const int32_t* lower = both ? upper + right_.row : upper;
      for (int64_t n = 0; n < count_;) {
        const int64_t bit = (first_ + n) % kWordBits;
        const int64_t bits = std::min(kWordBits - bit, count_ - n);
        const int64_t word = (first_ + n) / kWordBits;
        vector_kernels().sign_pairs_of_bits(static_cast<uint32_t>(upper[word]) >> bit,
                                            static_cast<uint32_t>(lower[word]) >> bit, bits,
                                            both ? kOnes : kOneAndZero, out + k / 2 * width_ + n);
        n += bits;
      }
    }
  }

  const RightSide& right_;
  int64_t depth_;
  int64_t first_;
  int64_t count_;
  int64_t width_;
};

// The right side from row `depth` on, a multiple of kWordBits.
RightSide below(RightSide right, int64_t depth) {
  const int64_t step = right.by_columns ? 1 : right.row;
  if (right.numbers) {
    right.numbers += depth * step;
  } else {
    right.signs += right.by_columns ? depth / kWordBits : depth * step;
  }
  return right;
}

// body(first column, columns) for tiles of about the same size.
template <typename Body>
void for_tiles(int64_t width, const Body& body) {
  const int64_t steps = width / kColumnStep;
  const int64_t tiles = ceil_divide(width, kTileColumns);
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t first = steps * i / tiles * kColumnStep;
    body(first, steps * (i + 1) / tiles * kColumnStep - first);
  }
}

// One multiplication cut into tasks.
class Tasks {
 public:
  Tasks(const Multiplication& product, int64_t fewest)
      : product_(product),
        groups_(ceil_divide(product.rows, kMostRows)),
        rows_(ceil_divide(product.rows, groups_)),
        steps_(ceil_divide(product.columns, kColumnStep)) {
    const int64_t columns = std::clamp(kSums / rows_, kTileColumns, kMostColumns);
    panels_ = std::max(ceil_divide(steps_, columns / kColumnStep),
                       std::min(steps_, ceil_divide(fewest, groups_)));
  }

  int64_t count() const { return panels_ * groups_; }

  void run(int64_t task) const {
    const int64_t panel = task / groups_;
    const int64_t first = steps_ * panel / panels_ * kColumnStep;
    const int64_t width = steps_ * (panel + 1) / panels_ * kColumnStep - first;
    const int64_t top = task % groups_ * rows_;
    const int64_t rows = std::min(rows_, product_.rows - top);
    float* sums = Scratch::get(rows * width + Panel::words(kPanelDepth, width));
    auto* memory = reinterpret_cast<uint32_t*>(sums + rows * width);
    bool add = false;
    double scale = 1;  // by which the sums are still to be multiplied
    for (const Term& term : product_.terms) {
      if (add) change_scale(scale, term.scale, sums, rows * width);
      scale = term.scale;
      for (int64_t k = 0; k < term.depth; k += kPanelDepth) {
        const Panel panel(memory, std::min(kPanelDepth, term.depth - k), width);
        panel.pack(term.right, k, first, product_.columns);
        panel.multiply(term.left + top * term.left_row + k, term.left_row, rows, sums, width, add);
        add = true;
      }
    }
    end_products();
    write(top, rows, first, sums, width, static_cast<float>(scale));
  }

 private:
  static void change_scale(double from, double to, float* sums, int64_t count) {
    if (from == to) return;
    const auto factor = static_cast<float>(from / to);
    for (int64_t i = 0; i < count; ++i) sums[i] *= factor;
  }

  void write(int64_t top, int64_t rows, int64_t first, const float* sums, int64_t width,
             float scale) const {
    const auto& [data, row, column] = product_.result;
    const int64_t count = std::min(width, product_.columns - first);
    uint16_t rounded[kMostColumns];
    c10::BFloat16* out = data + top * row + first * column;
    for (int64_t i = 0; i < rows; ++i) {
      auto* target = column == 1 ? reinterpret_cast<uint16_t*>(out + i * row) : rounded;
      vector_kernels().to_bfloat16(sums + i * width, count, scale,
                                   product_.bias ? product_.bias + first : nullptr, target);
      for (int64_t n = 0; column != 1 && n < count; ++n) {
        out[i * row + n * column] = c10::BFloat16(rounded[n], c10::BFloat16::from_bits());
      }
    }
  }

  const Multiplication& product_;
  int64_t groups_;  // of rows
  int64_t rows_;    // of a group
  int64_t steps_;   // of columns
  int64_t panels_;  // of columns
};

}  // namespace

void Panel::pack(const RightSide& right, int64_t top, int64_t first, int64_t columns) const {
  const RightSide rest = below(right, top);
  for_tiles(width_, [&](int64_t n, int64_t width) {
    const int64_t count = std::clamp<int64_t>(columns - first - n, 0, width);
    Packer(rest, depth_, first + n, count, width).pack(memory_ + words(depth_, n));
  });
}

void Panel::multiply(const c10::BFloat16* left, int64_t left_row, int64_t rows, float* sums,
                     int64_t sums_row, bool add) const {
  const int64_t height = depth_ <= 128 ? 4 * kTileRows : kTileRows;
  for (int64_t m = 0; m < rows; m += height) {
    for_tiles(width_, [&](int64_t n, int64_t width) {
      at::native::cpublas::brgemm(
          std::min(height, rows - m), width, whole_lines(depth_), left_row, width, sums_row, add,
          left + m * left_row, reinterpret_cast<const c10::BFloat16*>(memory_ + words(depth_, n)),
          sums + m * sums_row + n);
    });
  }
}

void end_products() { at::native::cpublas::brgemm_release(); }

void multiply(const std::vector<Multiplication>& all) {
  const int64_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  std::vector<Tasks> tasks;
  int64_t count = 0;
  int64_t multiply_adds = 0;
  for (const auto& product : all) {
    for (const Term& term : product.terms) {
      multiply_adds += product.rows * product.columns * term.depth;
    }
    tasks.emplace_back(product, ceil_divide(threads, static_cast<int64_t>(all.size())));
    count += tasks.back().count();
  }
  run_tasks(
      count,
      [&](int64_t task) {
        auto own = tasks.begin();
        for (; task >= own->count(); ++own) task -= own->count();
        own->run(task);
      },
      multiply_adds < kSmall);
}

}  // namespace sketchlayers::cpu
