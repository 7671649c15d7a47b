// Where the positions of a convolution's output and input meet, along one axis of an image. Plain
// integers, shared by CPU and CUDA kernels, so that both compute the same layer.
#pragma once

#include <cstdint>

#include "philox.h"  // SKETCHLAYERS_HOST_DEVICE

namespace sketchlayers {

// Division that rounds up, for a value of at least 0 and a divisor above 0.
SKETCHLAYERS_HOST_DEVICE inline int64_t ceil_divide(int64_t value, int64_t divisor) {
  return (value + divisor - 1) / divisor;
}

struct ConvAxis {
  int64_t input;   // positions of the input
  int64_t output;  // positions of the output
  int64_t kernel;  // taps
  int64_t stride;
  int64_t padding;
  int64_t dilation;
};

// Division that rounds towards minus infinity, and what it leaves, for a divisor above 0.
SKETCHLAYERS_HOST_DEVICE inline int64_t floor_divide(int64_t value, int64_t divisor) {
  const int64_t quotient = value / divisor;
  return value % divisor < 0 ? quotient - 1 : quotient;
}
SKETCHLAYERS_HOST_DEVICE inline int64_t floor_modulo(int64_t value, int64_t divisor) {
  return value - floor_divide(value, divisor) * divisor;
}

// The input position that an output position reads through a tap; outside the input it is a zero.
SKETCHLAYERS_HOST_DEVICE inline int64_t input_position(const ConvAxis& axis, int64_t output,
                                                       int64_t tap) {
  return output * axis.stride - axis.padding + tap * axis.dilation;
}

// With a stride, positions fall into interleaved grids, one for each phase:
//   position = index * stride + phase.
// Within one grid neighbours are read by neighbours, so that a tap is nothing but an offset.
struct AxisTap {
  int64_t phase;   // the grid that is read
  int64_t offset;  // the index that is read, less the index that reads
};

// Forward: output `o` reads index `o + offset` of the input's grid `phase`.
SKETCHLAYERS_HOST_DEVICE inline AxisTap forward_tap(const ConvAxis& axis, int64_t tap) {
  const int64_t distance = tap * axis.dilation - axis.padding;
  return {floor_modulo(distance, axis.stride), floor_divide(distance, axis.stride)};
}

// Adjoint: whether an input position of grid `phase` is read through `tap` at all.
SKETCHLAYERS_HOST_DEVICE inline bool is_read_through(const ConvAxis& axis, int64_t phase,
                                                     int64_t tap) {
  return floor_modulo(phase + axis.padding - tap * axis.dilation, axis.stride) == 0;
}

// Then index `i` of that grid is read by output `i + adjoint_offset`.
SKETCHLAYERS_HOST_DEVICE inline int64_t adjoint_offset(const ConvAxis& axis, int64_t phase,
                                                       int64_t tap) {
  return floor_divide(phase + axis.padding - tap * axis.dilation, axis.stride);
}

// Positions of a grid: the indices whose position lies below `size`.
SKETCHLAYERS_HOST_DEVICE inline int64_t grid_size(int64_t size, int64_t phase, int64_t stride) {
  return phase >= size ? 0 : (size - phase - 1) / stride + 1;
}

}  // namespace sketchlayers
