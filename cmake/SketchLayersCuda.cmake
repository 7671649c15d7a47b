# Adds the CUDA kernels, and what launches them, to the library.
#
#   CMAKE_CUDA_ARCHITECTURES        what to compile for, as CMake writes it: 80-real;90
#   SKETCHLAYERS_CUDA_ARCHS         the same as TORCH_CUDA_ARCH_LIST writes it, for messages
#   CUDA_CUDART                     the shared CUDA runtime, if the toolkit has none that is found
#   SKETCHLAYERS_CUDA_INCLUDE_DIRS  headers of CUDA's mathematics libraries, which a small toolkit lacks

if(NOT TARGET LibTorch::CUDA)
  message(FATAL_ERROR "SKETCHLAYERS_CUDA=ON needs a PyTorch with CUDA (got ${LibTorch_ROOT_DIR})")
endif()
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90) # 90: machine code and PTX
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

if(NOT DEFINED SKETCHLAYERS_CUDA_INCLUDE_DIRS)
  find_file(CUBLAS_HEADER cublas_v2.h PATHS ${CUDAToolkit_INCLUDE_DIRS} NO_DEFAULT_PATH)
  if(NOT CUBLAS_HEADER) # PyTorch's packages have them
    file(GLOB SKETCHLAYERS_CUDA_INCLUDE_DIRS "${LibTorch_ROOT_DIR}/../nvidia/*/include")
  endif()
endif()

# A target of its own, so that the other files are compiled alike with and without CUDA.
file(GLOB sources CONFIGURE_DEPENDS csrc/cuda/*.cu csrc/cuda/*.cpp)
add_library(sketchlayers_cuda OBJECT ${sources})
set_target_properties(sketchlayers_cuda PROPERTIES POSITION_INDEPENDENT_CODE ON
                                                   CUDA_ARCHITECTURES "${CMAKE_CUDA_ARCHITECTURES}")
target_include_directories(sketchlayers_cuda PRIVATE csrc)
target_include_directories(sketchlayers_cuda SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS}
                                                            ${SKETCHLAYERS_CUDA_INCLUDE_DIRS})
target_compile_options(sketchlayers_cuda
                       PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>")
target_link_libraries(sketchlayers_cuda PRIVATE LibTorch::CUDA)
join_files(sketchlayers_cuda)
target_link_libraries(sketchlayers PRIVATE sketchlayers_cuda LibTorch::CUDA "${CUDA_CUDART}")
get_filename_component(cudart_folder "${CUDA_CUDART}" DIRECTORY)
set_property(TARGET sketchlayers APPEND PROPERTY INSTALL_RPATH "${cudart_folder}")
