#include "nn/sketch_layer.h"

#include <ATen/autocast_mode.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iomanip>
#include <ostream>
#include <sstream>

#include "memory_sample.h"
#include "nn/seed_bits.h"
#include "nn/sk_conv2d.h"
#include "nn/sk_linear.h"
#include "ops/operands.h"
#include "ops/sign_matrix.h"
#include "ops/sk_weight.h"

namespace sketchlayers::nn {
namespace {

// The number of the frame's sign matrix of group 0: part of the file format (see signs.h). From
// 2^31 on were those of a random base, which earlier versions had.
constexpr int64_t kFrameMatrix = (int64_t{1} << 31) + (int64_t{1} << 30);

// Parameters are counted in double: exact below 2^53, and without overflow above.

double dense_parameters(const LayerSizes& sizes) {
  const double outputs = static_cast<double>(sizes.out_channels);
  return outputs * static_cast<double>(sizes.patch()) + (sizes.bias ? outputs : 0.0);
}

double sketch_parameters(const LayerSizes& sizes, int64_t stacked_rank) {
  const double per_channel = static_cast<double>(stacked_rank * sizes.positions());
  return per_channel * static_cast<double>(sizes.in_channels + sizes.out_channels) +
         (sizes.bias ? static_cast<double>(sizes.out_channels) : 0.0);
}

double scale_factor(const char* owner, const Scale& scale, int64_t num_sketches) {
  const double sketches = static_cast<double>(num_sketches);
  if (const auto* name = std::get_if<std::string>(&scale)) {
    check_one_of(owner, "scale", *name, {"paper", "normalized"});
    return *name == "paper" ? 1 / (2 * sketches) : 1 / std::sqrt(2 * sketches);
  }
  const double factor = std::get<double>(scale);
  TORCH_CHECK_VALUE(std::isfinite(factor) && factor > 0, owner,
                    ": scale must be finite and above 0 (got scale=", factor, ")");
  return factor;
}

// The rank that was given, or the whole number whose rate comes nearest to the one given.
int64_t resolved_rank(const LayerSizes& sizes, std::optional<int64_t> rank,
                      std::optional<double> rate, int64_t num_sketches) {
  const char* owner = sizes.owner;
  TORCH_CHECK_VALUE(rank.has_value() != rate.has_value(), owner,
                    ": exactly one of rank and rate must be given (got ",
                    rank ? "both" : "none of them", ")");
  if (rate) {
    TORCH_CHECK_VALUE(*rate > 0 && *rate <= 1, owner, ": rate must be in (0, 1] (got rate=", *rate,
                      ")");
  }
  if (rank) check_at_least(owner, "rank", *rank, 1);
  const int64_t least = rank.value_or(1);
  const int64_t largest = std::min(sizes.in_channels, sizes.out_channels) / sizes.groups;
  TORCH_CHECK_VALUE(num_sketches <= largest / least, owner,
                    ": num_sketches * rank must be at most min(inputs, outputs) / groups = ",
                    largest, " (got num_sketches=", num_sketches, ", rank=", least, ")");
  if (rank) return *rank;
  const double kept = sizes.bias ? static_cast<double>(sizes.out_channels) : 0.0;
  const double per_rank = sketch_parameters(sizes, num_sketches) - kept;
  const double nearest = std::nearbyint((*rate * dense_parameters(sizes) - kept) / per_rank);
  return std::min(std::max<int64_t>(1, static_cast<int64_t>(nearest)), largest / num_sketches);
}

int64_t drawn_seed() { return at::empty({}, at::kLong).random_().item<int64_t>(); }

// Packed signs (groups, rows, words); those of group g are of matrix first + step * g.
at::Tensor signs_by_group(bool hadamard, int64_t seed, int64_t first, int64_t step, int64_t groups,
                          int64_t rows, int64_t columns, at::Device device) {
  std::vector<at::Tensor> of_group;
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t matrix = first + step * group;
    of_group.push_back(hadamard ? hadamard_signs(seed, matrix, rows, columns, device)
                                : sign_matrix(seed, matrix, rows, columns, device));
  }
  return at::stack(of_group);
}

}  // namespace

int64_t LayerSizes::positions() const {
  int64_t product = 1;
  for (const int64_t size : kernel) product *= size;
  return product;
}

void check_at_least(const char* owner, const char* name, int64_t value, int64_t least) {
  TORCH_CHECK_VALUE(value >= least, owner, ": ", name, " must be at least ", least, " (got ", name,
                    "=", value, ")");
}

void check_in_range(const char* owner, const char* name, int64_t value, int64_t least,
                    int64_t most) {
  check_at_least(owner, name, value, least);
  TORCH_CHECK_VALUE(value <= most, owner, ": ", name, " must be at most ", most, " (got ", name,
                    "=", value, ")");
}

void check_pair(const char* owner, const char* name, at::IntArrayRef pair, int64_t least,
                int64_t most) {
  for (const int64_t value : pair) check_in_range(owner, name, value, least, most);
}

void check_one_of(const char* owner, const char* name, const std::string& value,
                  const std::vector<std::string>& choices) {
  if (std::find(choices.begin(), choices.end(), value) != choices.end()) return;
  std::string listed;
  for (const std::string& choice : choices) {
    listed += (listed.empty() ? "'" : ", '") + choice + "'";
  }
  TORCH_CHECK_VALUE(false, owner, ": ", name, " must be one of ", listed, " (got ", name, "='",
                    value, "')");
}

template <typename Derived, typename Options>
SketchLayerImpl<Derived, Options>::SketchLayerImpl(Options options_)
    : options(std::move(options_)) {
  SketchLayerImpl::reset();
}

template <typename Derived, typename Options>
void SketchLayerImpl<Derived, Options>::reset() {
  const LayerSizes sizes = Derived::checked_sizes(options);
  const char* owner = sizes.owner;
  const int64_t sketches = options.num_sketches(), blocks = options.blocks();
  check_at_least(owner, "num_sketches", sketches, 1);
  check_one_of(owner, "mixing", sizes.mixing, {"spatial", "channel"});
  check_at_least(owner, "blocks", blocks, 1);
  check_one_of(owner, "signs", options.signs(), {"rademacher", "hadamard"});
  if (options.frame()) check_one_of(owner, "frame", *options.frame(), {"signs"});
  TORCH_CHECK_VALUE(
      sizes.group_inputs() % blocks == 0 && sizes.group_outputs() % blocks == 0, owner,
      ": blocks must divide the inputs and the outputs of a group (got blocks=", blocks,
      ", inputs=", sizes.group_inputs(), ", outputs=", sizes.group_outputs(), ")");
  const double scale = scale_factor(owner, options.scale(), sketches);
  const int64_t rank = resolved_rank(sizes, options.rank(), options.rate(), sketches);
  if (options.seed()) {
    TORCH_CHECK_VALUE(*options.seed() >= 0, owner,
                      ": seed must be in [0, 2**63) (got seed=", *options.seed(), ")");
  } else {
    options.seed(drawn_seed());
  }
  sizes_ = sizes;
  scale_ = scale;
  rank_ = rank;

  const int64_t stacked = sketches * rank;
  std::vector<int64_t> s1_sizes{sizes.groups * stacked, sizes.group_inputs()};
  std::vector<int64_t> s2_sizes{sizes.out_channels, stacked};
  s1_sizes.insert(s1_sizes.end(), sizes.kernel.begin(), sizes.kernel.end());
  s2_sizes.insert(s2_sizes.end(), sizes.kernel.begin(), sizes.kernel.end());
  s1 = this->register_parameter("s1", at::empty(s1_sizes));
  s2 = this->register_parameter("s2", at::empty(s2_sizes));
  bias = this->register_parameter(
      "bias", sizes.bias ? at::empty({sizes.out_channels}) : at::Tensor(), sizes.bias);
  seed_bits = this->register_buffer("seed_bits", at::empty({kSeedEntries}, at::kFloat));
  reset_parameters();
}

template <typename Derived, typename Options>
void SketchLayerImpl<Derived, Options>::reset_parameters() {
  restore_seeded();
  if (s1.is_meta()) return;
  const at::NoGradGuard no_grad;
  const double sketches = static_cast<double>(options.num_sketches());
  const double patch = static_cast<double>(sizes_.patch());
  const double deviation = std::sqrt(2 / patch) / (scale_ * std::sqrt(2 * sketches));
  for (const at::Tensor& factor : {s1, s2}) {
    // Drawn in contiguous order, so that the memory format does not change the values.
    const at::Tensor values = at::empty_like(factor, at::MemoryFormat::Contiguous);
    factor.copy_(values.normal_(0, deviation));
  }
  if (bias.defined()) {
    const double bound = 1 / std::sqrt(patch);
    bias.uniform_(-bound, bound);
  }
}

template <typename Derived, typename Options>
void SketchLayerImpl<Derived, Options>::reset_signs() {
  if (!seed_bits.is_meta()) options.seed(seed_of(sizes_.owner, seed_bits, configuration()));
  restore_seeded();
}

template <typename Derived, typename Options>
void SketchLayerImpl<Derived, Options>::restore_seeded() {
  const at::NoGradGuard no_grad;
  const at::Device device = s1.device();
  const int64_t key = *options.seed(), groups = sizes_.groups;
  const int64_t outputs = sizes_.group_outputs(), patch = sizes_.patch();
  const int64_t stacked = options.blocks() * options.num_sketches() * rank_;
  const bool spatial = sizes_.mixing == "spatial";
  const int64_t taps = spatial ? sizes_.positions() : 1;
  const int64_t columns = spatial ? patch : sizes_.group_inputs();
  const bool hadamard = options.signs() == "hadamard";
  u1 = signs_by_group(hadamard, key, 0, 2, groups, stacked, outputs, device);
  u2 = signs_by_group(hadamard, key, 1, 2, groups, stacked * taps, columns, device);
  if (options.frame()) {
    frame_signs = signs_by_group(false, key, kFrameMatrix, 1, groups, outputs, patch, device);
  }
  if (!seed_bits.is_meta()) seed_bits.copy_(seed_entries(key, configuration()));
  followed_ = buffer_state();
  cache_.clear();
}

template <typename Derived, typename Options>
void SketchLayerImpl<Derived, Options>::follow_seed() {
  if (buffer_state() == followed_) return;
  if (seed_of(sizes_.owner, seed_bits, configuration()) != seed()) {
    reset_signs();
  } else {
    followed_ = buffer_state();
  }
}

template <typename Derived, typename Options>
uint64_t SketchLayerImpl<Derived, Options>::buffer_state() const {
  if (seed_bits.is_meta()) return 0;
  const auto* memory = seed_bits.const_data_ptr();
  const uint64_t version = seed_bits.is_inference() ? 0 : seed_bits._version();
  const uint64_t values =
      seed_bits.is_cpu() ? sample_memory(memory, static_cast<int64_t>(seed_bits.nbytes())) : 0;
  return reinterpret_cast<uintptr_t>(memory) ^ (version << 48) ^ values;
}

template <typename Derived, typename Options>
std::string SketchLayerImpl<Derived, Options>::configuration() const {
  std::ostringstream text;
  text << "sizes=" << sizes_.in_channels << "," << sizes_.out_channels;
  for (const int64_t size : sizes_.kernel) text << "," << size;
  if (!sizes_.kernel.empty()) text << "," << sizes_.groups;
  uint64_t scale_bits = 0;
  std::memcpy(&scale_bits, &scale_, sizeof scale_bits);
  text << ";blocks=" << options.blocks() << ";frame=" << options.frame().value_or("None")
       << ";mixing=" << sizes_.mixing << ";num_sketches=" << options.num_sketches()
       << ";rank=" << rank_ << ";scale=" << std::hex << std::setw(16) << std::setfill('0')
       << scale_bits << ";signs=" << options.signs();
  return text.str();
}

template <typename Derived, typename Options>
at::Tensor SketchLayerImpl<Derived, Options>::checked_seed_bits(const at::Tensor& loaded) const {
  const char* owner = sizes_.owner;
  if (loaded.dim() == 0) {
    TORCH_CHECK_TYPE(loaded.scalar_type() == at::kLong, owner,
                     ": seed must be int64, or its bits are lost (got ", loaded.scalar_type(), ")");
    const auto value = loaded.item<int64_t>();
    TORCH_CHECK_VALUE(value >= 0, owner, ": seed must be in [0, 2**63) (got seed=", value, ")");
    return seed_entries(value, configuration());
  }
  TORCH_CHECK_VALUE(loaded.sizes() == seed_bits.sizes(), owner, ": seed_bits must have shape ",
                    seed_bits.sizes(), " (got ", loaded.sizes(), ")");
  seed_of(owner, loaded, configuration());
  return loaded;
}

template <typename Derived, typename Options>
void SketchLayerImpl<Derived, Options>::follow_parameters() {
  if (u1.device() != s1.device()) restore_seeded();
  followed_ = buffer_state();
  cache_.clear();
}

template <typename Derived, typename Options>
at::Tensor SketchLayerImpl<Derived, Options>::dense_weight() const {
  return sk_weight(s1, s2, u1, u2, arguments());
}

template <typename Derived, typename Options>
double SketchLayerImpl<Derived, Options>::rate() const {
  return sketch_parameters(sizes_, options.num_sketches() * rank_) / dense_parameters(sizes_);
}

template <typename Derived, typename Options>
std::shared_ptr<torch::nn::Module> SketchLayerImpl<Derived, Options>::clone(
    const std::optional<at::Device>& device) const {
  std::shared_ptr<torch::nn::Module> copy = Cloned::clone(device);
  static_cast<SketchLayerImpl&>(*copy).follow_parameters();
  return copy;
}

template <typename Derived, typename Options>
void SketchLayerImpl<Derived, Options>::load(torch::serialize::InputArchive& archive) {
  Cloned::load(archive);
  reset_signs();
}

template <typename Derived, typename Options>
void SketchLayerImpl<Derived, Options>::train(bool on) {
  if (on) cache_.clear();
  Cloned::train(on);
}

template <typename Derived, typename Options>
void SketchLayerImpl<Derived, Options>::to(at::Device device, at::ScalarType dtype,
                                           bool non_blocking) {
  Cloned::to(device, dtype, non_blocking);
  follow_parameters();
}

template <typename Derived, typename Options>
void SketchLayerImpl<Derived, Options>::to(at::ScalarType dtype, bool non_blocking) {
  Cloned::to(dtype, non_blocking);
  follow_parameters();
}

template <typename Derived, typename Options>
void SketchLayerImpl<Derived, Options>::to(at::Device device, bool non_blocking) {
  Cloned::to(device, non_blocking);
  follow_parameters();
}

template <typename Derived, typename Options>
SketchArguments SketchLayerImpl<Derived, Options>::arguments() const {
  SketchArguments arguments{sizes_.mixing, options.num_sketches(), scale_};
  if (frame_signs.defined()) arguments.frame = frame_signs;
  arguments.blocks = options.blocks();
  return arguments;
}

template <typename Derived, typename Options>
at::Tensor SketchLayerImpl<Derived, Options>::kept_weight(const at::Tensor& input) {
  follow_seed();
  const bool traced = c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::Tracer);
  if (this->is_training() || traced || records({s1, s2}) || under_transform({input})) {
    cache_.clear();  // in eval mode too, training is not to hold the weight
    return {};
  }
  const std::vector<at::Tensor> sources{s1, s2, u1, u2, frame_signs};
  const bool followed = std::none_of(sources.begin(), sources.end(), [](const at::Tensor& source) {
    return source.defined() &&
           (!source.is_cpu() || source.is_inference() || !source.is_non_overlapping_and_dense());
  });
  if (!followed || !input.is_cpu() || input.scalar_type() != s1.scalar_type() ||
      at::autocast::is_autocast_enabled(at::kCPU) ||
      !static_cast<const Derived&>(*this).prefers_dense(input)) {
    return {};
  }
  return cache_.get(sources, [this] {
    // A normal tensor, which later calls outside of inference mode may save for backward.
    const c10::InferenceMode normal(false);
    const at::NoGradGuard no_grad;
    return dense_weight();
  });
}

template <typename Derived, typename Options>
void SketchLayerImpl<Derived, Options>::print_sketch(std::ostream& stream) const {
  stream << "rank=" << rank_;
  if (options.num_sketches() != 1) stream << ", num_sketches=" << options.num_sketches();
  if (sizes_.mixing != "spatial") stream << ", mixing=" << sizes_.mixing;
  if (scale_ != 1 / (2 * static_cast<double>(options.num_sketches()))) {
    stream << ", scale=" << scale_;
  }
  if (options.blocks() != 1) stream << ", blocks=" << options.blocks();
  if (options.signs() != "rademacher") stream << ", signs=" << options.signs();
  if (options.frame()) stream << ", frame=" << *options.frame();
  stream << ", rate=" << rate();
}

template class SketchLayerImpl<SKConv2dImpl, SKConv2dOptions>;
template class SketchLayerImpl<SKLinearImpl, SKLinearOptions>;

}  // namespace sketchlayers::nn
