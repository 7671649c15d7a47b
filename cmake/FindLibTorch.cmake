# Finds the C++ libraries of an installed PyTorch: the targets LibTorch::LibTorch, for a PyTorch with
# CUDA LibTorch::CUDA, and for one with Python LibTorch::Python.
#
# PyTorch's own find_package(Torch) is not used, because for a PyTorch with CUDA it demands a whole
# CUDA toolkit even of a project that is compiled for the CPU alone.
#
#   LIBTORCH_ROOT      PyTorch's folder (with include/ and lib/); found by asking Python when not set
#   Python_EXECUTABLE  the Python to ask
#
# Sets LibTorch_FOUND, LibTorch_VERSION, LibTorch_ROOT_DIR and LibTorch_CUDA_VERSION (empty without
# CUDA).

if(NOT LIBTORCH_ROOT)
  find_package(Python COMPONENTS Interpreter QUIET)
  if(Python_Interpreter_FOUND OR Python_EXECUTABLE)
    execute_process(
      COMMAND "${Python_EXECUTABLE}" -c
              "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
      OUTPUT_VARIABLE _folder OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    if(_folder)
      set(LIBTORCH_ROOT "${_folder}" CACHE PATH "PyTorch's folder, with include/ and lib/" FORCE)
    endif()
  endif()
endif()

find_path(LibTorch_INCLUDE_DIR ATen/ATen.h HINTS "${LIBTORCH_ROOT}/include" NO_DEFAULT_PATH)
foreach(_name IN ITEMS c10 torch_cpu c10_cuda torch_cuda torch_python)
  find_library(LibTorch_${_name}_LIBRARY ${_name} HINTS "${LIBTORCH_ROOT}/lib" NO_DEFAULT_PATH)
endforeach()

set(LibTorch_VERSION "")
set(LibTorch_CUDA_VERSION "")
if(EXISTS "${LIBTORCH_ROOT}/version.py") # the Python package
  file(READ "${LIBTORCH_ROOT}/version.py" _text)
  if(_text MATCHES "__version__ = '([0-9]+\\.[0-9]+\\.[0-9]+)")
    set(LibTorch_VERSION "${CMAKE_MATCH_1}")
  endif()
  if(_text MATCHES "\ncuda[^\n=]*= '([0-9.]+)'")
    set(LibTorch_CUDA_VERSION "${CMAKE_MATCH_1}")
  endif()
elseif(EXISTS "${LIBTORCH_ROOT}/build-version") # the C++ archive
  file(READ "${LIBTORCH_ROOT}/build-version" _text)
  if(_text MATCHES "^([0-9]+\\.[0-9]+\\.[0-9]+)")
    set(LibTorch_VERSION "${CMAKE_MATCH_1}")
  endif()
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(
  LibTorch
  REQUIRED_VARS LibTorch_c10_LIBRARY LibTorch_torch_cpu_LIBRARY LibTorch_INCLUDE_DIR
  VERSION_VAR LibTorch_VERSION
  REASON_FAILURE_MESSAGE
    "set LIBTORCH_ROOT to PyTorch's folder, or Python_EXECUTABLE to a Python that has PyTorch")

if(LibTorch_FOUND)
  set(LibTorch_ROOT_DIR "${LIBTORCH_ROOT}")
  if(NOT TARGET LibTorch::LibTorch)
    add_library(LibTorch::LibTorch INTERFACE IMPORTED)
    target_include_directories(
      LibTorch::LibTorch SYSTEM
      INTERFACE "${LibTorch_INCLUDE_DIR}" "${LibTorch_INCLUDE_DIR}/torch/csrc/api/include")
    target_link_libraries(
      LibTorch::LibTorch INTERFACE "${LibTorch_torch_cpu_LIBRARY}" "${LibTorch_c10_LIBRARY}")
    target_compile_features(LibTorch::LibTorch INTERFACE cxx_std_20)
  endif()
  if(LibTorch_torch_cuda_LIBRARY AND NOT TARGET LibTorch::CUDA)
    add_library(LibTorch::CUDA INTERFACE IMPORTED)
    target_link_libraries(
      LibTorch::CUDA INTERFACE LibTorch::LibTorch "${LibTorch_torch_cuda_LIBRARY}"
                               "${LibTorch_c10_cuda_LIBRARY}")
  endif()
  if(LibTorch_torch_python_LIBRARY AND NOT TARGET LibTorch::Python)
    add_library(LibTorch::Python INTERFACE IMPORTED)
    target_link_libraries(
      LibTorch::Python INTERFACE LibTorch::LibTorch "${LibTorch_torch_python_LIBRARY}")
  endif()
endif()
mark_as_advanced(LibTorch_INCLUDE_DIR)
