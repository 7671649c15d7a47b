// The options that SKConv2d and SKLinear share.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>

// As TORCH_ARG, for a base class: setters return the layer's own options, so that calls chain.
#define SKETCHLAYERS_ARG(T, name)                    \
 public:                                             \
  Options& name(T value) {                           \
    this->name##_ = std::move(value);                \
    return static_cast<Options&>(*this);             \
  }                                                  \
  const T& name() const noexcept { return name##_; } \
                                                     \
 private:                                            \
  T name##_

namespace sketchlayers::nn {

using Scale = std::variant<std::string, double>;

template <typename Options>
class SketchOptions {
  // `k`, with 1 <= l k <= min(d1, d2) / groups. Give this or `rate`.
  SKETCHLAYERS_ARG(std::optional<int64_t>, rank);

  // `l`.
  SKETCHLAYERS_ARG(int64_t, num_sketches) = 1;

  // Parameters of this layer over those of the dense one, biases included, in (0, 1]; the nearest
  // whole rank is taken, at least 1, and the layer's rate() tells what it gives.
  SKETCHLAYERS_ARG(std::optional<double>, rate);

  // The factor of the sum: "paper" is 1/(2l); "normalized" is 1/sqrt(2l), for which a step of SGD
  // moves the weight as far as it moves a dense one; or a number.
  SKETCHLAYERS_ARG(Scale, scale) = std::string("paper");

  // Equal parts of the inputs and of the outputs of each group that have signs of their own: the
  // same parameters, `blocks` times the rank, `blocks` times the operations with signs.
  SKETCHLAYERS_ARG(int64_t, blocks) = 1;

  // "rademacher" or "hadamard".
  SKETCHLAYERS_ARG(std::string, signs) = "rademacher";

  // "signs" multiplies the sum by fixed random signs, made from the seed.
  SKETCHLAYERS_ARG(std::optional<std::string>, frame);

  // Decides all signs; drawn from PyTorch's default generator if not given, and then kept here.
  SKETCHLAYERS_ARG(std::optional<int64_t>, seed);

  // "auto" plans each call, "factored" and "folded" freeze how it is computed. May be changed at
  // any time.
  SKETCHLAYERS_ARG(std::string, path) = "auto";
};

}  // namespace sketchlayers::nn
