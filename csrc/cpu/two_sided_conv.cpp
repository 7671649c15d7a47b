#include "cpu/two_sided_conv.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <memory>

#include "cpu/conv_plan.h"
#include "cpu/conv_stages.h"
#include "cpu/tasks.h"

namespace sketchlayers::cpu {
namespace {

bool is_empty(const TwoSidedConv& conv, const Sampling& sampling) {
  return conv.images * sampling.target.rows * sampling.target.columns == 0;
}

// A thread makes one tile after the other.
template <typename T>
void run_tiles(const ConvPlan& plan, const FeatureStage<T>& features,
               const OutputStage<T>& outputs) {
  run_tasks(plan.tiles(), [&](int64_t i) {
    float* scratch = Scratch::get(plan.feature_floats() + plan.work_floats());
    float* work = scratch + plan.feature_floats();
    features.make(plan.tile(i), 0, plan.conv.features(), scratch, work);
    outputs.make(plan.tile(i), 0, plan.conv.outputs, scratch, work);
  });
}

// Few tiles: threads share each one's features, first by rows of them, then by outputs.
template <typename T>
void run_shared(const ConvPlan& plan, int64_t threads, const FeatureStage<T>& features,
                const OutputStage<T>& outputs) {
  const int64_t count = plan.tiles();
  const int64_t floats = plan.feature_floats();
  const std::unique_ptr<float[]> shared(new float[static_cast<size_t>(count * floats)]);
  const auto split = [&](const auto& stage, int64_t size, int64_t step) {
    const int64_t parts = std::min(ceil_divide(size, step), 2 * threads);
    const int64_t part = ceil_divide(ceil_divide(size, parts), step) * step;
    const int64_t slices = ceil_divide(size, part);
    run_tasks(count * slices, [&](int64_t i) {
      const int64_t first = i % slices * part;
      stage.make(plan.tile(i / slices), first, std::min(size, first + part),
                 shared.get() + i / slices * floats, Scratch::get(plan.work_floats()));
    });
  };
  split(features, plan.conv.features(), 1);
  split(outputs, plan.conv.outputs, kColumnStep);
}

}  // namespace

bool fits(const TwoSidedConv& conv, const Sampling& sampling) {
  return tiles_fit(sampling, std::max(conv.features(), kOutputStep));
}

template <typename T>
void run(const TwoSidedConv& conv, const Sampling& sampling, const ImageView<const T>& input,
         const ImageView<T>& output) {
  if (is_empty(conv, sampling)) return;
  const ConvPlan plan(conv, sampling, reads_taps_in_place(sampling, input));
  const FeatureStage<T> features(plan, input);
  const OutputStage<T> outputs(
      plan, output.grid(sampling.target, sampling.target_row_step, sampling.target_column_step));
  const int64_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  if (plan.tiles() >= threads) {
    run_tiles(plan, features, outputs);
  } else {
    run_shared(plan, threads, features, outputs);
  }
}

template <typename T>
void run_features(const TwoSidedConv& conv, const Sampling& sampling,
                  const ImageView<const T>& input, const ImageView<float>& output) {
  if (is_empty(conv, sampling)) return;
  const ConvPlan plan(conv, sampling, reads_taps_in_place(sampling, input));
  const FeatureStage<T> features(plan, input);
  const int64_t count = conv.features();
  run_tasks(plan.tiles(), [&](int64_t i) {
    const Tile t = plan.tile(i);
    float* scratch = Scratch::get(plan.feature_floats() + plan.work_floats());
    features.make(t, 0, count, scratch, scratch + plan.feature_floats());
    store_window(scratch, plan.layout.columns(), plan.layout.pitch(), count,
                 output.at(t.image, t.group * count), t.first_row, t.rows, sampling.target.columns);
  });
}

#define SKETCHLAYERS_INSTANTIATE(T)                                                           \
  template void run(const TwoSidedConv&, const Sampling&, const ImageView<const T>&,          \
                    const ImageView<T>&);                                                     \
  template void run_features(const TwoSidedConv&, const Sampling&, const ImageView<const T>&, \
                             const ImageView<float>&)
SKETCHLAYERS_INSTANTIATE(float);
SKETCHLAYERS_INSTANTIATE(c10::BFloat16);
SKETCHLAYERS_INSTANTIATE(c10::Half);
#undef SKETCHLAYERS_INSTANTIATE

}  // namespace sketchlayers::cpu
