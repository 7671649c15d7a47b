# Adds the module _C, and lets the library be found beside it.

find_package(Python REQUIRED COMPONENTS Interpreter Development.Module)
Python_add_library(_C MODULE WITH_SOABI csrc/python/bindings.cpp) # pybind11 comes with PyTorch
target_link_libraries(_C PRIVATE sketchlayers LibTorch::Python)
target_compile_options(_C PRIVATE ${OpenMP_CXX_FLAGS})
target_link_options(_C PRIVATE ${OpenMP_CXX_FLAGS})
target_compile_definitions(
  _C PRIVATE SKETCHLAYERS_VERSION="${PROJECT_VERSION}"
             SKETCHLAYERS_TORCH_VERSION="${LibTorch_VERSION}")
if(SKETCHLAYERS_CUDA)
  string(REPLACE ";" " " architectures "${SKETCHLAYERS_CUDA_ARCHS}")
  target_compile_definitions(
    _C PRIVATE SKETCHLAYERS_CUDA_VERSION="${CUDAToolkit_VERSION_MAJOR}.${CUDAToolkit_VERSION_MINOR}"
               SKETCHLAYERS_CUDA_ARCHS="${architectures}")
endif()
set_target_properties(_C PROPERTIES CXX_VISIBILITY_PRESET hidden)

# PyTorch's folder is beside this package's in an installation; in an editable one PyTorch's
# libraries are found because Python has already loaded them.
set_target_properties(sketchlayers _C PROPERTIES INSTALL_RPATH "$ORIGIN;$ORIGIN/../torch/lib")
install(TARGETS sketchlayers _C LIBRARY DESTINATION . COMPONENT python EXCLUDE_FROM_ALL)
