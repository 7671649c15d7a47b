#include "cpu/weight.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "cpu/tasks.h"

namespace sketchlayers::cpu {
namespace {

constexpr int64_t kWeightRows = 48;   // a multiple of kColumnStep, and of the rows of a block
constexpr int64_t kWeightSlice = 64;  // outputs of one task of the adjoint

// Units of one task, and of one step of the adjoint's sums; multiples of kColumnStep.
int64_t unit_slice(const WeightShape& shape) { return shape.positions == 1 ? 64 : 16; }
int64_t unit_step(const WeightShape& shape) { return shape.positions == 1 ? 128 : 32; }

void expand(const Signs& signs, int64_t group, int64_t first_row, int64_t rows, int64_t column,
            int64_t columns, float* out, int64_t out_row) {
  for (int64_t i = 0; i < rows; ++i) {
    vector_kernels().expand_signs(signs.row(group, first_row + i), column, columns, signs.magnitude,
                                  out + i * out_row);
  }
}

// Multiplies one row of a tile with the frame, if there is one; `column` is a multiple of
// kColumnStep.
void apply_frame(const Signs& frame, int64_t group, int64_t output, int64_t column, int64_t columns,
                 float* row, float* work) {
  if (!frame.packed) return;
  expand(frame, group, output, 1, column, columns, work, 0);
  for (int64_t i = 0; i < columns; ++i) row[i] *= work[i];
}

template <typename T>
class Former {
 public:
  Former(const WeightShape& shape, const WeightSigns& signs, const float* s1, const float* s2,
         T* weight)
      : shape_(shape), signs_(signs), s1_(s1), s2_(s2), weight_(weight) {}

  void run() const {
    const int64_t slices = ceil_divide(shape_.units, unit_slice(shape_));
    // With few columns rows are shared out too.
    const int64_t parts =
        std::clamp<int64_t>(ceil_divide(2 * at::get_num_threads(), shape_.groups * slices), 1,
                            ceil_divide(shape_.outputs, kWeightRows));
    const int64_t part = ceil_divide(ceil_divide(shape_.outputs, parts), kWeightRows) * kWeightRows;
    run_tasks(shape_.groups * slices * parts, [&](int64_t i) {
      const int64_t first = i % parts * part;
      const int64_t unit = i / parts % slices * unit_slice(shape_);
      form(i / parts / slices, unit, std::min(unit_slice(shape_), shape_.units - unit), first,
           std::min(first + part, shape_.outputs));
    });
  }

 private:
  // Columns of `units` units for outputs [first, last).
  void form(int64_t group, int64_t unit, int64_t units, int64_t first, int64_t last) const {
    const VectorKernels& kernels = vector_kernels();
    const int64_t room = unit_slice(shape_);
    const int64_t columns = units * shape_.positions;
    const int64_t row = room * shape_.positions;
    float* b = Scratch::get((shape_.second_rank + kWeightRows) * room +
                            (shape_.rank + kWeightRows + 1) * row + shape_.rank * kWeightRows);
    float* by_position = b + shape_.second_rank * room;
    float* copy = by_position + kWeightRows * room;
    float* tile = copy + shape_.rank * row;
    float* work = tile + kWeightRows * row;
    float* a = work + row;
    expand(signs_.b, group, 0, shape_.second_rank, unit, units, b, room);
    const auto [right, right_row] = s1_columns(group, unit * shape_.positions, columns, copy, row);
    for (int64_t o = first; o < last; o += kWeightRows) {
      const int64_t rows = std::min(kWeightRows, last - o);
      expand(signs_.a, group, 0, shape_.rank, o, rows, a, kWeightRows);
      const float* s2 = s2_ + (group * shape_.outputs + o) * s2_row();
      Product parts[2] = {
          {a, 1, kWeightRows, kNoOffset, right, right_row, kNoOffset, shape_.rank, 1},
          {s2, s2_row(), shape_.positions, kNoOffset, b, room, kNoOffset, shape_.second_rank, 1}};
      if (shape_.positions == 1) {
        if (T* target = whole_target(group, o, unit, columns, room)) {
          if constexpr (std::is_same_v<T, float>) {
            kernels.product(parts, 2, rows, columns, nullptr, target, shape_.columns(), false);
            continue;
          }
        }
        kernels.product(parts, 2, rows, whole_steps(columns), nullptr, tile, row, false);
      } else {
        kernels.product(parts, 1, rows, whole_steps(columns), nullptr, tile, row, false);
        for (int64_t p = 0; p < shape_.positions; ++p) {
          parts[1].w = s2 + p;
          kernels.product(parts + 1, 1, rows, room, nullptr, by_position, room, false);
          for (int64_t m = 0; m < rows; ++m) {
            for (int64_t u = 0; u < units; ++u) {
              tile[m * row + u * shape_.positions + p] += by_position[m * room + u];
            }
          }
        }
      }
      for (int64_t m = 0; m < rows; ++m) {
        apply_frame(signs_.frame, group, o + m, unit * shape_.positions, columns, tile + m * row,
                    work);
        store_row(group, o + m, unit * shape_.positions, columns, tile + m * row);
      }
    }
  }

  int64_t s2_row() const { return shape_.second_rank * shape_.positions; }

  struct Columns {
    const float* data;
    int64_t row;
  };

  // Columns of S1: themselves where whole steps can be read, else a copy.
  Columns s1_columns(int64_t group, int64_t column, int64_t columns, float* copy,
                     int64_t row) const {
    const float* data = s1_ + group * shape_.rank * shape_.columns() + column;
    if (columns % kColumnStep == 0) return {data, shape_.columns()};
    for (int64_t j = 0; j < shape_.rank; ++j) {
      std::copy_n(data + j * shape_.columns(), columns, copy + j * row);
      std::fill(copy + j * row + columns, copy + j * row + whole_steps(columns), 0.0f);
    }
    return {copy, row};
  }

  // Where a finished tile of whole steps can be written at once.
  T* whole_target(int64_t group, int64_t output, int64_t column, int64_t columns,
                  int64_t room) const {
    if (signs_.frame.packed || columns != room || !std::is_same_v<T, float>) return nullptr;
    return weight_ + (group * shape_.outputs + output) * shape_.columns() + column;
  }

  void store_row(int64_t group, int64_t output, int64_t column, int64_t columns,
                 const float* row) const {
    T* target = weight_ + (group * shape_.outputs + output) * shape_.columns() + column;
    if constexpr (std::is_same_v<T, c10::BFloat16>) {
      vector_kernels().to_bfloat16(row, columns, 1, nullptr, reinterpret_cast<uint16_t*>(target));
    } else {
      std::copy_n(row, columns, target);
    }
  }

  const WeightShape& shape_;
  const WeightSigns& signs_;
  const float* s1_;
  const float* s2_;
  T* weight_;
};

template <typename T>
class Adjoint {
 public:
  Adjoint(const WeightShape& shape, const WeightSigns& signs, const T* grad)
      : shape_(shape), signs_(signs), grad_(grad) {}

  void run(float* grad_s1, float* grad_s2) const {
    const int64_t columns = unit_slice(shape_) * shape_.positions;
    const int64_t first = grad_s1 ? shape_.groups * ceil_divide(shape_.columns(), columns) : 0;
    const int64_t second = grad_s2 ? shape_.groups * ceil_divide(shape_.outputs, kWeightSlice) : 0;
    // The second kind takes longer, so it goes first.
    run_tasks(first + second, [&](int64_t i) {
      if (i < second) {
        sum_over_columns(i % shape_.groups, i / shape_.groups * kWeightSlice, grad_s2);
      } else {
        const int64_t column = (i - second) / shape_.groups * columns;
        sum_over_outputs((i - second) % shape_.groups, column,
                         std::min(columns, shape_.columns() - column), grad_s1);
      }
    });
  }

 private:
  static constexpr int64_t kOutputs = 128;  // of one step of the sums

  // Rows of the gradient in float32, with the frame's signs, filled up with zeros.
  void copy_rows(int64_t group, int64_t output, int64_t rows, int64_t column, int64_t columns,
                 float* out, int64_t out_row, float* work) const {
    for (int64_t i = 0; i < rows; ++i) {
      float* row = out + i * out_row;
      copy_run(grad_ + (group * shape_.outputs + output + i) * shape_.columns() + column, 1,
               columns, row);
      std::fill(row + columns, row + whole_steps(columns), 0.0f);
      apply_frame(signs_.frame, group, output + i, column, columns, row, work);
    }
  }

  // dS1 = A^T G for some columns.
  void sum_over_outputs(int64_t group, int64_t column, int64_t columns, float* grad_s1) const {
    const int64_t room = whole_steps(columns);
    float* a = Scratch::get(shape_.rank * kOutputs + (kOutputs + shape_.rank + 1) * room);
    float* rows = a + shape_.rank * kOutputs;
    float* tile = rows + kOutputs * room;
    float* work = tile + shape_.rank * room;
    for (int64_t o = 0; o < shape_.outputs; o += kOutputs) {
      const int64_t count = std::min(kOutputs, shape_.outputs - o);
      expand(signs_.a, group, 0, shape_.rank, o, count, a, kOutputs);
      const float* source = rows;
      int64_t source_row = room;
      bool whole = false;
      if constexpr (std::is_same_v<T, float>) {
        whole = columns == room && !signs_.frame.packed;
        if (whole) {
          source = grad_ + (group * shape_.outputs + o) * shape_.columns() + column;
          source_row = shape_.columns();
        }
      }
      if (!whole) copy_rows(group, o, count, column, columns, rows, room, work);
      const Product part{a, kOutputs, 1, kNoOffset, source, source_row, kNoOffset, count, 1};
      vector_kernels().product(&part, 1, shape_.rank, room, nullptr, tile, room, o > 0);
    }
    for (int64_t j = 0; j < shape_.rank; ++j) {
      std::copy_n(tile + j * room, columns,
                  grad_s1 + (group * shape_.rank + j) * shape_.columns() + column);
    }
  }

  // dS2 = G B^T for some outputs, transposed: outputs in the lanes.
  void sum_over_columns(int64_t group, int64_t output, float* grad_s2) const {
    const int64_t outputs = std::min(kWeightSlice, shape_.outputs - output);
    const int64_t step = unit_step(shape_);
    const int64_t columns = step * shape_.positions;
    const int64_t sums_size = shape_.positions * shape_.second_rank * kWeightSlice;
    float* b =
        Scratch::get(shape_.second_rank * step + 2 * kWeightSlice * columns + columns + sums_size);
    float* rows = b + shape_.second_rank * step;
    float* transposed = rows + kWeightSlice * columns;
    float* work = transposed + kWeightSlice * columns;
    float* sums = work + columns;
    for (int64_t unit = 0; unit < shape_.units; unit += step) {
      const int64_t units = std::min(step, shape_.units - unit);
      const int64_t width = units * shape_.positions;
      expand(signs_.b, group, 0, shape_.second_rank, unit, units, b, step);
      copy_rows(group, output, outputs, unit * shape_.positions, width, rows, columns, work);
      vector_kernels().transpose(rows, columns, outputs, width, transposed, kWeightSlice, true);
      for (int64_t p = 0; p < shape_.positions; ++p) {
        const Product part{b,
                           step,
                           1,
                           kNoOffset,
                           transposed + p * kWeightSlice,
                           shape_.positions * kWeightSlice,
                           kNoOffset,
                           units,
                           1};
        vector_kernels().product(&part, 1, shape_.second_rank, whole_steps(outputs), nullptr,
                                 sums + p * shape_.second_rank * kWeightSlice, kWeightSlice,
                                 unit > 0);
      }
    }
    for (int64_t o = 0; o < outputs; ++o) {
      float* target =
          grad_s2 + (group * shape_.outputs + output + o) * shape_.second_rank * shape_.positions;
      for (int64_t k = 0; k < shape_.second_rank; ++k) {
        for (int64_t p = 0; p < shape_.positions; ++p) {
          target[k * shape_.positions + p] = sums[(p * shape_.second_rank + k) * kWeightSlice + o];
        }
      }
    }
  }

  const WeightShape& shape_;
  const WeightSigns& signs_;
  const T* grad_;
};

}  // namespace

template <typename T>
void form_weight(const WeightShape& shape, const WeightSigns& signs, const float* s1,
                 const float* s2, T* weight) {
  Former<T>(shape, signs, s1, s2, weight).run();
}

template <typename T>
void pull_back_weight(const WeightShape& shape, const WeightSigns& signs, const T* grad,
                      float* grad_s1, float* grad_s2) {
  Adjoint<T>(shape, signs, grad).run(grad_s1, grad_s2);
}

#define SKETCHLAYERS_INSTANTIATE(T)                                                             \
  template void form_weight(const WeightShape&, const WeightSigns&, const float*, const float*, \
                            T*);                                                                \
  template void pull_back_weight(const WeightShape&, const WeightSigns&, const T*, float*, float*)
SKETCHLAYERS_INSTANTIATE(float);
SKETCHLAYERS_INSTANTIATE(c10::BFloat16);
SKETCHLAYERS_INSTANTIATE(c10::Half);
#undef SKETCHLAYERS_INSTANTIATE

}  // namespace sketchlayers::cpu
