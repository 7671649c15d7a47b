// What SKConv2d and SKLinear share: options, factors, signs, scale, initial values, the dense
// weight.
#pragma once

#include <torch/nn/cloneable.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "nn/weight_cache.h"
#include "ops/sketch.h"

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

// A layer's sizes, checked.
struct LayerSizes {
  const char* owner;  // the layer's name, for messages
  int64_t in_channels;
  int64_t out_channels;
  std::vector<int64_t> kernel;  // empty for a fully connected layer
  int64_t groups;
  bool bias;
  std::string mixing;

  int64_t group_inputs() const { return in_channels / groups; }
  int64_t group_outputs() const { return out_channels / groups; }
  int64_t positions() const;
  int64_t patch() const { return group_inputs() * positions(); }  // n, the inputs of one output
};

// A layer with W_hat = c frame o (A S1 + S2 B) in place of its weight; see ops/sketch.h.
//
// Parameters s1, s2, bias and the buffer seed have the names and shapes of the Python layers, and
// the same torch::manual_seed gives the same values. The signs are no buffers, because they follow
// from the seed: they are made anew when an archive is loaded and follow the parameters' device.
// After a write into `seed` in place call reset_signs().
//
// `Derived` has a static function checked_sizes(options) and a member prefers_dense(input).
template <typename Derived, typename Options>
class SketchLayerImpl : public torch::nn::Cloneable<Derived> {
 public:
  // Raises c10::ValueError for an option out of its range.
  explicit SketchLayerImpl(Options options);

  void reset() override;

  // Draws new factors and bias from PyTorch's generator: the factors normal with the deviation that
  // gives W_hat the Kaiming variance for any scale; the bias as that of
  // torch::nn::Conv2d. The seed stays.
  void reset_parameters();

  // Makes the signs anew from the buffer `seed_bits`, and nothing else. A write into the buffer
  // takes effect by itself at the next call of forward().
  void reset_signs();

  // Entries of `seed_bits` that a state dict has; a seed as a number, as earlier versions have it,
  // becomes them. Raises c10::ValueError or c10::TypeError for what is no seed of this layer.
  at::Tensor checked_seed_bits(const at::Tensor& loaded) const;

  // W_hat in the shape of the dense weight, differentiable in s1 and s2.
  at::Tensor dense_weight() const;

  // Drops the dense weight that inference keeps. Needed after a write into a few entries of the
  // factors that leaves their version counters alone.
  void clear_cache() { cache_.clear(); }

  int64_t seed() const { return *options.seed(); }  // decides all signs
  int64_t rank() const { return rank_; }            // k
  double scale() const { return scale_; }           // c
  double rate() const;                              // parameters over those of the dense layer

  std::shared_ptr<torch::nn::Module> clone(
      const std::optional<at::Device>& device = std::nullopt) const override;
  void load(torch::serialize::InputArchive& archive) override;
  void train(bool on = true) override;
  void to(at::Device device, at::ScalarType dtype, bool non_blocking = false) override;
  void to(at::ScalarType dtype, bool non_blocking = false) override;
  void to(at::Device device, bool non_blocking = false) override;

  Options options;

  at::Tensor s1;           // (groups * l * k, d2 / groups, h, w) or (l * k, d2)
  at::Tensor s2;           // (d1, l * k, h, w) or (d1, l * k)
  at::Tensor bias;         // (d1), undefined without
  at::Tensor seed_bits;    // buffer (96), the seed as zeros and ones
  at::Tensor u1;           // packed signs of A, (groups, blocks * l * k, words)
  at::Tensor u2;           // packed signs of B
  at::Tensor frame_signs;  // packed signs of the frame, undefined without

 protected:
  using Cloned = torch::nn::Cloneable<Derived>;

  SketchArguments arguments() const;

  // The dense weight, if an inference call on the CPU is to use it: kept from call to call while
  // the factors stay as they are. Undefined where the operator is to run.
  at::Tensor kept_weight(const at::Tensor& input);

  // The end of pretty_print: what a dense layer does not have.
  void print_sketch(std::ostream& stream) const;

  LayerSizes sizes_;

 private:
  void restore_seeded();  // the buffer and all that follows from it, from options.seed()
  void follow_parameters();
  void follow_seed();
  uint64_t buffer_state() const;      // another one after a write into the buffer
  std::string configuration() const;  // what a seed belongs to, as text

  int64_t rank_ = 0;
  double scale_ = 0;
  uint64_t followed_ = 0;  // the state of the buffer that options.seed() is what it holds of
  WeightCache cache_;
};

// Checks on options, made before any work. Raise c10::ValueError: `owner: what must hold`.
void check_at_least(const char* owner, const char* name, int64_t value, int64_t least);
void check_in_range(const char* owner, const char* name, int64_t value, int64_t least,
                    int64_t most);
void check_pair(const char* owner, const char* name, at::IntArrayRef pair, int64_t least,
                int64_t most);
void check_one_of(const char* owner, const char* name, const std::string& value,
                  const std::vector<std::string>& choices);

}  // namespace sketchlayers::nn
