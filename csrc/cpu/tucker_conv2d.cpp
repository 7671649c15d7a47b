// tucker_conv2d_fused on the CPU, by our own kernels but for float64 and rare geometries.
#include "ops/tucker_conv2d.h"

#include <torch/library.h>

#include "cpu/allocate.h"
#include "cpu/chain_conv.h"
#include "cpu/conv_geometry.h"
#include "cpu/pixel_chain.h"
#include "ops/checks.h"
#include "ops/sketch.h"

namespace sketchlayers {
namespace {

// A filter as the kernels read it, in float32; stays alive with this. Asked for first, since a
// conversion that changes nothing takes as long as other steps of a small call.
at::Tensor numbers(const std::optional<at::Tensor>& filter) {
  if (!filter) return {};
  if (filter->scalar_type() == at::kFloat && filter->is_contiguous()) return *filter;
  return filter->to(at::kFloat).contiguous();
}

const float* data(const at::Tensor& filter) {
  return filter.defined() ? filter.const_data_ptr<float>() : nullptr;
}

at::Tensor tucker_conv2d_fused_cpu(const TuckerCall& call) {
  const auto& [input, factors, bias, arguments] = call;
  const Tucker tucker = check_call(call);
  const auto format = common_memory_format(input, factors.core);
  const auto composed = [&] { return in_format(tucker_conv2d_plain(call), format); };
  if (!computes_in_float(input.scalar_type()) || input.numel() == 0) return composed();
  const at::IntArrayRef sizes = C10_AS_INTARRAYREF_SLOW(tucker.output_sizes);
  cpu::ConvGeometry geometry(input, sizes, tucker.kernel_h, tucker.kernel_w, arguments);
  const at::Tensor source = cpu::dense_images(input);
  if (geometry.pointwise && cpu::channels_together(source) &&
      format == at::MemoryFormat::ChannelsLast) {
    geometry.merge_images();
  }
  const at::Tensor first = numbers(factors.inputs);
  const at::Tensor core = numbers(factors.core);
  const at::Tensor last = numbers(factors.outputs);
  const at::Tensor offset = numbers(bias);
  const cpu::ChainConv conv{geometry.images,
                            tucker.groups,
                            tucker.in_channels,
                            tucker.out_channels,
                            tucker.input_rank,
                            tucker.output_rank,
                            tucker.kernel_h * tucker.kernel_w,
                            tucker.depthwise,
                            data(first),
                            data(core),
                            data(last),
                            data(offset)};
  const cpu::Sampling sampling = cpu::forward_sampling(geometry.rows, geometry.columns);
  if (!geometry.is_narrow() || !cpu::fits(conv, sampling)) return composed();
  const bool by_pixels = cpu::channels_together(source) &&
                         format == at::MemoryFormat::ChannelsLast &&
                         cpu::takes_pixels(conv, geometry.rows, geometry.columns);
  const at::Tensor output = cpu::empty_result(sizes, input.options(), format);
  for_type(input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto from = geometry.view(source, source.const_data_ptr<T>());
    const auto to = geometry.view(output, output.mutable_data_ptr<T>());
    if (by_pixels) {
      cpu::run_pixels<T>(conv, geometry.rows, geometry.columns, from, to);
    } else {
      cpu::run<T>(conv, sampling, from, to);
    }
  });
  return in_format(output, format);
}

TORCH_LIBRARY_IMPL(sketchlayers, CPU, m) {
  m.impl("tucker_conv2d_fused", TORCH_FN(TuckerCall::unpacked<tucker_conv2d_fused_cpu>));
}

}  // namespace
}  // namespace sketchlayers
