#include "ops/sign_matrix.h"

#include <ATen/Dispatch.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "composite/composed.h"
#include "cuda/kernel_checks.h"
#include "cuda/launches.h"

namespace sketchlayers {
namespace {

at::Tensor sign_matrix_cuda(int64_t seed, int64_t matrix, int64_t rows, int64_t columns,
                            std::optional<at::Device> device) {
  check_sign_matrix(seed, matrix, rows, columns);
  at::globalContext().lazyInitDevice(at::kCUDA);  // no argument has come from there
  const c10::cuda::OptionalCUDAGuard guard(device);
  const at::Device own = device.value_or(at::kCUDA);
  if (!cuda::uses_kernel(cuda::kSignMatrix, at::kInt)) {
    cuda::check_not_captured("sign_matrix");
    return sign_matrix_composed(seed, matrix, rows, columns, own);
  }
  const int64_t words = sign_words(columns);
  at::Tensor packed = at::empty({rows, words}, at::TensorOptions().dtype(at::kInt).device(own));
  const int64_t blocks = words / kWordsPerBlock;
  if (packed.numel() == 0) return packed;
  C10_CUDA_CHECK(
      cuda::launch_sign_matrix(packed.mutable_data_ptr<int32_t>(), static_cast<uint64_t>(seed),
                               static_cast<uint32_t>(matrix), rows, blocks,
                               at::cuda::getCurrentDeviceProperties()->multiProcessorCount,
                               at::cuda::getCurrentCUDAStream()));
  return packed;
}

at::Tensor unpack_signs_cuda(const at::Tensor& packed, int64_t columns, int64_t start,
                             at::ScalarType dtype, double scale) {
  check_unpack_signs(packed, columns, start, dtype);
  const c10::cuda::CUDAGuard guard(packed.device());
  if (!cuda::uses_kernel(cuda::kUnpackSigns, dtype)) {
    return unpack_signs_composed(packed, columns, start, dtype, scale);
  }
  const at::Tensor source = packed.contiguous();
  auto sizes = source.sizes().vec();
  const int64_t words = sizes.back();
  sizes.back() = columns;
  at::Tensor out = at::empty(sizes, packed.options().dtype(dtype));
  if (out.numel() == 0) return out;
  const int64_t rows = out.numel() / columns;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, dtype, "unpack_signs", [&] {
    C10_CUDA_CHECK(cuda::launch_unpack_signs(
        out.mutable_data_ptr<scalar_t>(), source.const_data_ptr<int32_t>(), rows, columns, words,
        start, static_cast<scalar_t>(scale),
        at::cuda::getCurrentDeviceProperties()->multiProcessorCount,
        at::cuda::getCurrentCUDAStream()));
  });
  return out;
}

TORCH_LIBRARY_IMPL(sketchlayers, CUDA, m) {
  m.impl("sign_matrix", TORCH_FN(sign_matrix_cuda));
  m.impl("unpack_signs", TORCH_FN(unpack_signs_cuda));
}

}  // namespace
}  // namespace sketchlayers
