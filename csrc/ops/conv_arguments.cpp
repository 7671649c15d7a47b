#include "ops/conv_arguments.h"

#include <c10/util/safe_numerics.h>

#include "ops/checks.h"

namespace sketchlayers {
namespace {

// (size + 2 padding - dilation (kernel - 1) - 1) / stride + 1
c10::SymInt output_size(const char* op, const c10::SymInt& size, int64_t kernel, int64_t stride,
                        int64_t padding, int64_t dilation) {
  const auto known = size.maybe_as_int();  // a guard on a symbolic one would say nothing
  TORCH_CHECK(!known || (*known >= 1 && *known <= kLargestConvSize - 2 * padding), op,
              ": height and width must be at least 1, and with padding below 2^31 (got size ", size,
              " with padding ", padding, ")");
  const c10::SymInt padded = size + 2 * padding;
  // The largest kernel is asked for first, for which the product does not overflow.
  TORCH_CHECK(kernel <= kLargestConvSize && padded >= dilation * (kernel - 1) + 1, op,
              ": the kernel must fit into the padded input (got kernel ", kernel, " with dilation ",
              dilation, " for size ", size, " with padding ", padding, ")");
  return (padded - dilation * (kernel - 1) - 1) / stride + 1;
}

}  // namespace

std::vector<int64_t> effective_dilation(const ConvArguments& conv, const at::Tensor& filter) {
  std::vector<int64_t> dilation = conv.dilation;
  for (const int axis : {0, 1}) {
    if (filter.sym_size(axis + 2).maybe_as_int() == 1) dilation[axis] = 1;
  }
  return dilation;
}

void check_conv_arguments(const char* op, const ConvArguments& conv, int64_t in_channels,
                          int64_t out_channels) {
  const auto check_pair = [op](const char* name, const std::vector<int64_t>& pair, int64_t least) {
    const auto allowed = [least](int64_t n) { return n >= least && n <= kLargestConvStep; };
    TORCH_CHECK_VALUE(pair.size() == 2 && allowed(pair[0]) && allowed(pair[1]), op, ": ", name,
                      " must be two numbers from ", least, " to ", kLargestConvStep, " (got ",
                      c10::ArrayRef<int64_t>(pair), ")");
  };
  check_pair("stride", conv.stride, 1);
  check_pair("padding", conv.padding, 0);
  check_pair("dilation", conv.dilation, 1);
  TORCH_CHECK_VALUE(in_channels <= kLargestConvSize && out_channels <= kLargestConvSize, op,
                    ": a convolution must have fewer than 2^31 channels (got ", in_channels,
                    " input and ", out_channels, " output channels)");
}

std::vector<c10::SymInt> conv_output_sizes(const char* op, const at::Tensor& input,
                                           int64_t out_channels, int64_t kernel_h, int64_t kernel_w,
                                           const ConvArguments& conv) {
  std::vector<c10::SymInt> sizes{input.sym_size(0), out_channels,
                                 output_size(op, input.sym_size(2), kernel_h, conv.stride[0],
                                             conv.padding[0], conv.dilation[0]),
                                 output_size(op, input.sym_size(3), kernel_w, conv.stride[1],
                                             conv.padding[1], conv.dilation[1])};
  check_result_sizes(op, sizes);
  return sizes;
}

std::optional<int64_t> product_if_known(const c10::SymInt& a, const c10::SymInt& b) {
  const auto first = a.maybe_as_int();
  const auto second = b.maybe_as_int();
  int64_t product = 0;
  if (!first || !second || c10::mul_overflows(*first, *second, &product)) return std::nullopt;
  return product;
}

}  // namespace sketchlayers
