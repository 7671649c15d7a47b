#include "ops/sketch.h"

#include <ATen/ops/as_strided.h>
#include <c10/core/MemoryFormat.h>
#include <c10/util/strides.h>

#include <cmath>
#include <limits>

#include "ops/checks.h"
#include "signs.h"

namespace sketchlayers {
namespace {

Mixing parse_mixing(const char* op, const std::string& mixing) {
  if (mixing == "spatial") return Mixing::kSpatial;
  if (mixing == "channel") return Mixing::kChannel;
  TORCH_CHECK_VALUE(false, op, ": mixing must be 'spatial' or 'channel' (got '", mixing, "')");
}

int64_t known_size(const at::Tensor& tensor, int64_t dim) {
  return tensor.sym_size(dim).guard_int(__FILE__, __LINE__);
}

// Packed signs of shape (groups, rows, words(columns)) on the device of the parameters.
void check_signs(const char* op, const char* name, const at::Tensor& signs, int64_t groups,
                 int64_t rows, int64_t columns, const at::Tensor& like) {
  TORCH_CHECK_TYPE(signs.scalar_type() == at::kInt, op, ": ", name,
                   " must be packed signs of type int32 (got ", signs.scalar_type(), ")");
  check_strided(op, name, signs);
  TORCH_CHECK(signs.device() == like.device(), op, ": ", name,
              " must be on the device of the parameters (got ", signs.device(), " and ",
              like.device(), ")");
  const int64_t words = sign_words(columns);
  TORCH_CHECK(signs.dim() == 3 && known_size(signs, 0) == groups && known_size(signs, 1) == rows &&
                  known_size(signs, 2) == words,
              op, ": ", name, " must have shape (", groups, ", ", rows, ", ", words,
              "), packed signs of (groups, rows, columns) = (", groups, ", ", rows, ", ", columns,
              ") (got ", signs.sym_sizes(), ")");
}

void check_product(const char* op, std::initializer_list<int64_t> factors) {
  int64_t product = 1;
  for (const int64_t factor : factors) {
    TORCH_CHECK_VALUE(product <= std::numeric_limits<int64_t>::max() / 8 / factor, op,
                      ": the dense weight must have fewer than 2^63 bytes (got ",
                      c10::ArrayRef<int64_t>(factors), " elements along its dimensions)");
    product *= factor;
  }
}

// The rules that need only the signs and the sizes of the weight.
Sketch check_fixed_part(const char* op, const at::Tensor& u1, const at::Tensor& u2, int64_t rank,
                        int64_t blocks, int64_t out_channels, int64_t in_channels, int64_t kernel_h,
                        int64_t kernel_w, bool is_linear, const at::Tensor& like,
                        const SketchArguments& arguments) {
  const Mixing mixing = parse_mixing(op, arguments.mixing);
  const int64_t groups = known_size(u1, 0);
  TORCH_CHECK(groups >= 1 && rank >= 1, op,
              ": groups and rank must be at least 1 (got groups=", groups, ", rank=", rank,
              " from u1)");
  TORCH_CHECK(!is_linear || groups == 1, op,
              ": parameters of 2 dimensions are those of a linear layer, which has one group (got "
              "groups=",
              groups, " from u1)");
  TORCH_CHECK(out_channels >= 1 && in_channels >= 1 && kernel_h >= 1 && kernel_w >= 1, op,
              ": channels and kernel sizes must be at least 1 (got out_channels=", out_channels,
              ", in_channels/groups=", in_channels, ", kernel=(", kernel_h, ", ", kernel_w, "))");
  TORCH_CHECK(out_channels % groups == 0, op, ": out_channels must be divisible by groups (got ",
              out_channels, " and groups=", groups, ")");
  TORCH_CHECK(blocks >= 1 && in_channels % blocks == 0 && out_channels / groups % blocks == 0, op,
              ": blocks must divide the inputs and the outputs of a group (got blocks=", blocks,
              ", inputs=", in_channels, ", outputs=", out_channels / groups, ")");
  const int64_t sketches = arguments.num_sketches;
  TORCH_CHECK_VALUE(sketches >= 1 && rank % sketches == 0, op,
                    ": num_sketches must be at least 1 and divide the stacked rank (got "
                    "num_sketches=",
                    sketches, ", stacked rank=", rank, ")");
  const double scale = arguments.scale.value_or(0.5 / static_cast<double>(sketches));
  TORCH_CHECK_VALUE(std::isfinite(scale), op, ": scale must be finite (got ", scale, ")");
  check_product(op, {out_channels, in_channels, kernel_h, kernel_w});
  check_product(op, {blocks, rank, kernel_h, kernel_w, in_channels, kernel_h, kernel_w});

  Sketch sketch;
  sketch.groups = groups;
  sketch.rank = rank;
  sketch.blocks = blocks;
  sketch.out_channels = out_channels / groups;
  sketch.in_channels = in_channels;
  sketch.kernel_h = kernel_h;
  sketch.kernel_w = kernel_w;
  sketch.mixing = mixing;
  sketch.is_linear = is_linear;
  const double k = static_cast<double>(rank / sketches);
  sketch.scale = scale;
  sketch.u1_scale = 1.0 / std::sqrt(k);
  sketch.u2_scale = sketch.mixes_space()
                        ? 1.0 / std::sqrt(k * static_cast<double>(sketch.positions()))
                        : sketch.u1_scale;

  check_signs(op, "u1", u1, groups, blocks * rank, sketch.out_channels, like);
  check_signs(op, "u2", u2, groups, blocks * sketch.second_rank(),
              sketch.mixes_space() ? sketch.inputs() : in_channels, like);
  if (arguments.frame) {
    check_signs(op, "frame", *arguments.frame, groups, sketch.out_channels, sketch.inputs(), like);
  }
  return sketch;
}

void check_dimensions(const char* op, const at::Tensor& u1) {
  TORCH_CHECK(u1.dim() == 3, op, ": u1 must have 3 dimensions (groups, blocks * rank, words) (got ",
              u1.sym_sizes(), ")");
}

}  // namespace

std::vector<int64_t> Sketch::weight_sizes() const {
  if (is_linear) return {out_channels, in_channels};
  return {groups * out_channels, in_channels, kernel_h, kernel_w};
}

std::vector<int64_t> Sketch::s1_sizes() const {
  if (is_linear) return {rank, in_channels};
  return {groups * rank, in_channels, kernel_h, kernel_w};
}

std::vector<int64_t> Sketch::s2_sizes() const {
  if (is_linear) return {out_channels, rank};
  return {groups * out_channels, rank, kernel_h, kernel_w};
}

Sketch check_sketch(const char* op, const SketchTensors& tensors,
                    const SketchArguments& arguments) {
  const auto& [s1, s2, u1, u2] = tensors;
  check_floating(op, "s1", s1);
  TORCH_CHECK_TYPE(s1.scalar_type() == s2.scalar_type(), op,
                   ": s1 and s2 must have the same type (got ", s1.scalar_type(), " and ",
                   s2.scalar_type(), ")");
  check_strided(op, "s2", s2);
  TORCH_CHECK(s1.device() == s2.device(), op, ": s1 and s2 must be on the same device (got ",
              s1.device(), " and ", s2.device(), ")");
  const int64_t dims = s1.dim();
  TORCH_CHECK((dims == 2 || dims == 4) && s2.dim() == dims, op,
              ": s1 and s2 must both have 4 dimensions (convolution) or 2 (linear) (got s1 ",
              s1.sym_sizes(), " and s2 ", s2.sym_sizes(), ")");
  const bool is_linear = dims == 2;
  const int64_t kernel_h = is_linear ? 1 : known_size(s1, 2);
  const int64_t kernel_w = is_linear ? 1 : known_size(s1, 3);
  check_dimensions(op, u1);
  const int64_t groups = known_size(u1, 0);
  const int64_t rank = groups > 0 ? known_size(s1, 0) / groups : 0;
  TORCH_CHECK(groups >= 1 && rank >= 1, op,
              ": groups and rank must be at least 1 (got groups=", groups, " from u1, s1 ",
              s1.sym_sizes(), ")");
  TORCH_CHECK(known_size(s1, 0) == groups * rank && known_size(u1, 1) % rank == 0, op,
              ": s1 must have groups * rank rows, and u1 in each group the rank's number for every "
              "block (got s1 ",
              s1.sym_sizes(), " and u1 ", u1.sym_sizes(), ")");
  const Sketch sketch =
      check_fixed_part(op, u1, u2, rank, known_size(u1, 1) / rank, known_size(s2, 0),
                       known_size(s1, 1), kernel_h, kernel_w, is_linear, s1, arguments);
  TORCH_CHECK(s2.sym_sizes() == c10::fromIntArrayRefSlow(sketch.s2_sizes()), op,
              ": s2 must have shape ", c10::ArrayRef<int64_t>(sketch.s2_sizes()), " to match s1 ",
              s1.sym_sizes(), " and u1 (got ", s2.sym_sizes(), ")");
  return sketch;
}

Sketch check_weight_gradient(const char* op, const at::Tensor& grad, const at::Tensor& u1,
                             const at::Tensor& u2, const SketchArguments& arguments) {
  check_floating(op, "grad", grad);
  const bool is_linear = grad.dim() == 2;
  TORCH_CHECK(is_linear || grad.dim() == 4, op,
              ": grad must have the shape of the dense weight, 4 or 2 dimensions (got ",
              grad.sym_sizes(), ")");
  check_dimensions(op, u1);
  const int64_t blocks = arguments.blocks;
  TORCH_CHECK_VALUE(blocks >= 1 && known_size(u1, 1) % blocks == 0, op,
                    ": blocks must be at least 1 and divide the rows of u1 (got blocks=", blocks,
                    ", u1 ", u1.sym_sizes(), ")");
  return check_fixed_part(op, u1, u2, known_size(u1, 1) / blocks, blocks, known_size(grad, 0),
                          known_size(grad, 1), is_linear ? 1 : known_size(grad, 2),
                          is_linear ? 1 : known_size(grad, 3), is_linear, grad, arguments);
}

at::Tensor in_format(const at::Tensor& tensor, at::MemoryFormat format) {
  if (tensor.dim() != 4) return tensor.contiguous();
  if (!tensor.is_contiguous(format)) return tensor.contiguous(format);
  const std::vector<int64_t> strides =
      format == at::MemoryFormat::ChannelsLast
          ? c10::get_channels_last_strides_2d(tensor.sizes())
          : at::IntArrayRef(c10::contiguous_strides(tensor.sizes())).vec();
  return tensor.strides() == at::IntArrayRef(strides) ? tensor
                                                      : tensor.as_strided(tensor.sizes(), strides);
}

at::MemoryFormat common_memory_format(const at::Tensor& a, const at::Tensor& b) {
  const auto channels_last = [](const at::Tensor& tensor) {
    return tensor.dim() == 4 && tensor.suggest_memory_format() == at::MemoryFormat::ChannelsLast;
  };
  return channels_last(a) || channels_last(b) ? at::MemoryFormat::ChannelsLast
                                              : at::MemoryFormat::Contiguous;
}

}  // namespace sketchlayers
