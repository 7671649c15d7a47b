#include "cpu/conv_plan.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <limits>

namespace sketchlayers::cpu {
namespace {

// What a task keeps beside the second-level cache's other guests.
constexpr int64_t kSourceFloats = 1 << 16;
constexpr int64_t kSignFloats = 1 << 16;

// Whole steps, at least one, of what there is.
int64_t chunk(int64_t wanted, int64_t size) {
  return std::min(std::max(wanted / kColumnStep, int64_t{1}) * kColumnStep, whole_steps(size));
}

}  // namespace

ConvPlan::ConvPlan(const TwoSidedConv& conv_, const Sampling& sampling_, bool in_place_)
    : conv(conv_),
      sampling(sampling_),
      in_place(in_place_),
      pointwise(is_pointwise(sampling)),
      tile_rows(cpu::tile_rows(conv, sampling, in_place)),
      layout(sampling, tile_rows, in_place),
      out_block(conv.outputs) {
  // Taps are 32-bit offsets into a channel.
  TORCH_INTERNAL_ASSERT(layout.channel() <= std::numeric_limits<int32_t>::max());
  int64_t in_signs = 1;  // floats of a channel's signs, and of an output's
  int64_t out_signs = 1;
  for (const Branch& branch : conv.branches) {
    in_signs = std::max(in_signs, sign_floats(branch, branch.in));
    out_signs = std::max(out_signs, sign_floats(branch, branch.out));
    numbers = std::max(numbers, branch.features * positions(branch.out));
    out_block = std::min(out_block, conv.outputs / branch.out_blocks);
  }
  channel_chunk =
      chunk(std::min(kSourceFloats / layout.channel(), kSignFloats / in_signs), conv.inputs);
  output_chunk = chunk(std::min(kOutputStep, kSignFloats / out_signs), conv.outputs);
  signs = std::max(in_signs * channel_chunk, out_signs * output_chunk);
}

Tile ConvPlan::tile(int64_t i) const {
  const int64_t first = i % row_tiles() * tile_rows;
  const int64_t image = i / row_tiles();
  return {image / conv.groups, image % conv.groups, first,
          std::min(tile_rows, sampling.target.rows - first)};
}

int64_t ConvPlan::feature_floats() const {
  int64_t sum = 0;
  for (const Branch& branch : conv.branches) sum += branch.features * feature_row(branch);
  return sum;
}

int64_t ConvPlan::work_floats() const {
  const int64_t source = channel_chunk * (layout.channel() + kColumnStep);
  const int64_t target = output_chunk * (layout.columns() + numbers);
  return signs + std::max(source, target);
}

std::vector<uint16_t> ConvPlan::tile_masks(const Tile& tile) const {
  const bool whole = tile.rows * layout.pitch() % kColumnStep == 0;
  if (!in_place || (pointwise && whole)) return {};
  return layout.masks(tile.first_row, tile.first_row + tile.rows);
}

void ConvPlan::set_taps(const Factor& factor, const std::vector<uint16_t>& masks,
                        Product& product) const {
  if (factor.taps) {
    product.w_tap = layout.filter_offsets();
    product.b_tap = layout.source_offsets();
    product.taps = layout.taps();
  }
  if (!masks.empty()) {
    product.mask = masks.data();
    product.mask_tap = layout.columns() / kColumnStep;
  }
}

}  // namespace sketchlayers::cpu
