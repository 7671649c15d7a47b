// The dense weight of a sketched layer, kept from one inference call to the next.
#pragma once

#include <ATen/core/Tensor.h>

#include <mutex>
#include <utility>
#include <vector>

#include "memory_sample.h"

namespace sketchlayers::nn {

// Keeps a tensor while those that it is made from stay as they are. Safe for many threads; a copy
// keeps nothing.
class WeightCache {
 public:
  WeightCache() = default;
  WeightCache(const WeightCache& /*other*/) {}
  WeightCache& operator=(const WeightCache& /*other*/) {
    clear();
    return *this;
  }

  // The kept weight, or that which `form` makes. The sources are on the CPU and without gaps.
  // Undefined ones are allowed; those made in inference mode are not, as they have no version
  // counter.
  template <typename Form>
  at::Tensor get(const std::vector<at::Tensor>& tensors, const Form& form) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!weight_.defined() || !are_sources(tensors)) {
      weight_.reset();  // freed before the new one is formed
      sources_.clear();
      for (const at::Tensor& tensor : tensors) sources_.emplace_back(tensor);
      weight_ = form();
    }
    return weight_;
  }

  void clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    weight_.reset();
    sources_.clear();
  }

 private:
  struct Source {
    explicit Source(const at::Tensor& source) : tensor(source) {
      if (!source.defined()) return;
      memory = source.detach();
      version = source._version();
      sample = sampled(source);
    }

    bool is(const at::Tensor& other) const {
      if (!tensor.defined() || !other.defined()) return tensor.defined() == other.defined();
      return tensor.is_same(other) && other._version() == version &&
             other.const_data_ptr() == memory.const_data_ptr() &&
             other.scalar_type() == memory.scalar_type() && other.strides() == memory.strides() &&
             sampled(other) == sample;
    }

    at::Tensor tensor;
    // Memory that is still held is not given to another tensor, so that an equal address means the
    // same memory, also after set_data().
    at::Tensor memory;
    int64_t version = 0;
    // Of what lies in the CPU's memory: a write past the version counter is noticed.
    uint64_t sample = 0;
  };

  static uint64_t sampled(const at::Tensor& tensor) {
    return sample_memory(tensor.const_data_ptr(), static_cast<int64_t>(tensor.nbytes()));
  }

  bool are_sources(const std::vector<at::Tensor>& tensors) const {
    if (tensors.size() != sources_.size()) return false;
    for (size_t i = 0; i < tensors.size(); ++i) {
      if (!sources_[i].is(tensors[i])) return false;
    }
    return true;
  }

  std::mutex mutex_;
  at::Tensor weight_;
  std::vector<Source> sources_;
};

}  // namespace sketchlayers::nn
