# Adds the CUDA kernels to the target sketchlayers.

if(NOT TARGET LibTorch::CUDA)
  message(FATAL_ERROR "SKETCHLAYERS_CUDA=ON needs a PyTorch with CUDA (got ${LibTorch_ROOT_DIR})")
endif()
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90) # 90: machine code and PTX
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

# Headers of CUDA's mathematics libraries, which a small toolkit lacks: PyTorch's packages have them.
find_file(CUBLAS_HEADER cublas_v2.h PATHS ${CUDAToolkit_INCLUDE_DIRS} NO_DEFAULT_PATH)
if(NOT CUBLAS_HEADER)
  file(GLOB cuda_extra_include_dirs "${LibTorch_ROOT_DIR}/../nvidia/*/include")
endif()

file(GLOB_RECURSE cuda_sources CONFIGURE_DEPENDS csrc/*.cu)
target_sources(sketchlayers PRIVATE ${cuda_sources})
set_target_properties(sketchlayers PROPERTIES CUDA_ARCHITECTURES "${CMAKE_CUDA_ARCHITECTURES}")
target_compile_definitions(sketchlayers PRIVATE SKETCHLAYERS_WITH_CUDA)
target_include_directories(sketchlayers SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS}
                                                       ${cuda_extra_include_dirs})
target_compile_options(sketchlayers PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>")
target_link_libraries(sketchlayers PRIVATE LibTorch::CUDA CUDA::cudart)
