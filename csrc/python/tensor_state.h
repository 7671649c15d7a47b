// What a layer asks about its tensors at every call, in one call from Python.
#pragma once

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/TracerMode.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/PyInterpreter.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/csrc/autograd/python_variable.h>

#include <optional>

#include "memory_sample.h"

namespace sketchlayers {

class StateHash {
 public:
  void mix(uint64_t word) {
    hash_ = (hash_ ^ word) * 0xc4ceb9fe1a85ec53ULL;  // of MurmurHash3's finalizer
    hash_ ^= hash_ >> 33;
  }

  // Where a tensor lies, its version counter, type and strides, and a sample of what it has in the
  // CPU's memory. False for a tensor with gaps, without memory, or made in inference mode, which
  // has no version counter.
  bool mix(const at::Tensor& tensor) {
    if (tensor.layout() != at::kStrided || !tensor.has_storage() || tensor.is_inference())
      return false;
    const void* memory = nullptr;
    try {
      memory = tensor.const_data_ptr();
    } catch (const c10::Error&) {  // a tensor of shapes alone
    }
    if (memory == nullptr) return false;
    mix(reinterpret_cast<uintptr_t>(tensor.unsafeGetTensorImpl()));
    mix(reinterpret_cast<uintptr_t>(memory));
    mix(tensor._version());
    mix(static_cast<uint64_t>(tensor.scalar_type()));
    for (const int64_t stride : tensor.strides()) mix(static_cast<uint64_t>(stride));
    if (!tensor.is_cpu()) return true;
    if (!tensor.is_non_overlapping_and_dense()) return false;
    mix(sample_memory(memory, static_cast<int64_t>(tensor.nbytes())));
    return true;
  }

  uint64_t value() const { return hash_; }

 private:
  uint64_t hash_ = 0;
};

// Another number after nearly any change of a tensor, or nothing where that cannot be told.
inline std::optional<uint64_t> tensor_state(const pybind11::handle& tensor) {
  StateHash hash;
  if (!hash.mix(THPVariable_Unpack(tensor.ptr()))) return std::nullopt;
  return hash.value();
}

// Whether a mode sees the calls of functions; that of the default device does no harm.
inline bool has_function_mode() {
  namespace py = pybind11;
  if (!at::impl::torch_function_mode_enabled()) return false;
  const py::object device_mode = py::module_::import("torch.utils._device").attr("DeviceContext");
  for (int64_t i = 0; i < at::impl::PythonTorchFunctionTLS::stack_len(); ++i) {
    const auto& mode = at::impl::PythonTorchFunctionTLS::get_stack_at(i);
    const PyObject* object = mode->ptr(getPyInterpreter());
    if (reinterpret_cast<const PyObject*>(Py_TYPE(object)) != device_mode.ptr()) return true;
  }
  return false;
}

// Whether this thread's operators do more than compute: they are traced, transformed or seen by a
// mode.
inline bool is_observed() {
  return c10::impl::tls_is_dispatch_key_included(
             c10::DispatchKey::FuncTorchDynamicLayerFrontMode) ||
         c10::impl::TorchDispatchModeTLS::any_modes_set() ||
         at::tracer::impl::is_dispatch_enabled() ||
         torch::autograd::ForwardADLevel::try_get_by_idx(0) != nullptr || has_function_mode();
}

// Another number after nearly any change of what a layer's weight is made from, on the CPU, and of
// autocast. Nothing where a call may not use an earlier weight: in training or recording gradients
// of the parameters, while it is observed, and where the parameters are no plain ones of the layer
// or cannot be followed. The sources are the names of parameters, of buffers, and of attributes in
// the layer's __dict__.
inline std::optional<uint64_t> weight_state(const pybind11::dict& attributes,
                                            const pybind11::tuple& sources) {
  namespace py = pybind11;
  static const py::object* plain =
      new py::object(py::module_::import("torch.nn").attr("Parameter"));
  static const py::str* const names[] = {new py::str("training"), new py::str("_parameters"),
                                         new py::str("_buffers"),
                                         new py::str("_load_state_dict_pre_hooks")};
  const auto attribute = [&attributes](const py::handle& name) {
    return PyDict_GetItemWithError(attributes.ptr(), name.ptr());  // borrowed
  };
  PyObject *const training = attribute(*names[0]), *const parameters = attribute(*names[1]),
                  *const buffers = attribute(*names[2]), *const hooks = attribute(*names[3]);
  if (training != Py_False || parameters == nullptr || buffers == nullptr) return std::nullopt;
  // `fully_shard` hooks every module of which it has a parameter, and gathers new values into the
  // same memory, past the version counter.
  if (hooks != nullptr && PyObject_Size(hooks) > 0) return std::nullopt;
  if (is_observed()) return std::nullopt;

  StateHash hash;
  const bool records = c10::GradMode::is_enabled();
  for (const py::handle name : sources[0]) {
    PyObject* const object = PyDict_GetItemWithError(parameters, name.ptr());
    // A subclass, such as a fake or distributed tensor, has its own rules.
    if (object == nullptr || reinterpret_cast<PyObject*>(Py_TYPE(object)) != plain->ptr())
      return std::nullopt;
    const at::Tensor& parameter = THPVariable_Unpack(object);
    if (!parameter.is_cpu() || (records && parameter.requires_grad()) || !hash.mix(parameter))
      return std::nullopt;
  }
  for (const py::handle name : sources[1]) {
    PyObject* const object = PyDict_GetItemWithError(buffers, name.ptr());
    if (object == nullptr || object == Py_None) continue;
    if (!THPVariable_CheckExact(object) || !hash.mix(THPVariable_Unpack(object)))
      return std::nullopt;
  }
  for (const py::handle name : sources[2]) {
    PyObject* const option = attribute(name);
    if (option != nullptr) hash.mix(static_cast<uint64_t>(py::hash(option)));
  }
  if (at::autocast::is_autocast_enabled(at::kCPU))
    hash.mix(1 + static_cast<uint64_t>(at::autocast::get_autocast_dtype(at::kCPU)));
  return hash.value();
}

}  // namespace sketchlayers
