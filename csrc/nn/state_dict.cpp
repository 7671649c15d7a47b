#include "nn/state_dict.h"

#include <torch/csrc/jit/serialization/pickle.h>

#include <fstream>
#include <iterator>
#include <map>
#include <utility>
#include <vector>

#include "nn/sk_conv2d.h"
#include "nn/sk_linear.h"

namespace sketchlayers::nn {
namespace {

using State = std::map<std::string, at::Tensor>;

// Tensors of the module itself: a write into them is a write into the module.
State state_of(const torch::nn::Module& module) {
  State state;
  for (const auto& parameter : module.named_parameters()) {
    state.emplace(parameter.key(), parameter.value());
  }
  for (const auto& buffer : module.named_buffers()) state.emplace(buffer.key(), buffer.value());
  return state;
}

State read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  TORCH_CHECK(file, "load_state_dict: the file must be readable (got '", path, "')");
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  State state;
  try {
    const c10::IValue content = torch::jit::pickle_load(bytes);
    if (content.isGenericDict()) {
      for (const auto& entry : content.toGenericDict()) {
        state.emplace(entry.key().toStringRef(), entry.value().toTensor());
      }
    } else {
      for (const c10::IValue& entry : content.toTupleRef().elements()) {
        const auto& pair = entry.toTupleRef().elements();
        state.emplace(pair.at(0).toStringRef(), pair.at(1).toTensor());
      }
    }
  } catch (const std::exception&) {
    TORCH_CHECK(false,
                "load_state_dict: the file must hold a dict of names and tensors, as "
                "torch.save(dict(model.state_dict()), path) writes it (got '",
                path, "')");
  }
  return state;
}

void check_fits(const State& state, const State& own) {
  for (const auto& [name, target] : own) {
    const auto found = state.find(name);
    TORCH_CHECK(found != state.end(), "load_state_dict: the file must hold '", name,
                "' of the module (it does not)");
    const at::Tensor& value = found->second;
    TORCH_CHECK(value.sizes() == target.sizes(), "load_state_dict: ", name, " must have shape ",
                target.sizes(), " (got ", value.sizes(), ")");
    TORCH_CHECK_TYPE(target.is_floating_point() || value.scalar_type() == target.scalar_type(),
                     "load_state_dict: ", name, " must be ", target.scalar_type(),
                     ", or its bits are lost (got ", value.scalar_type(), ")");
  }
  for (const auto& [name, value] : state) {
    TORCH_CHECK(own.count(name),
                "load_state_dict: the module must have all that the file holds "
                "(it has no '",
                name, "')");
  }
}

// The state with every seed checked, those of earlier versions as today's.
State with_seeds(State state, const torch::nn::Module& module) {
  module.apply([&](const std::string& path, const torch::nn::Module& part) {
    const auto* conv = part.as<SKConv2d>();
    const auto* linear = part.as<SKLinear>();
    if (conv == nullptr && linear == nullptr) return;
    const std::string earlier = path.empty() ? "seed" : path + ".seed", name = earlier + "_bits";
    if (auto node = state.extract(earlier); !node.empty() && state.count(name) == 0) {
      node.key() = name;
      state.insert(std::move(node));
    }
    const auto found = state.find(name);
    if (found == state.end()) return;
    found->second = conv != nullptr ? conv->checked_seed_bits(found->second)
                                    : linear->checked_seed_bits(found->second);
  });
  return state;
}

}  // namespace

void save_state_dict(const torch::nn::Module& module, const std::string& path) {
  // Of a dict, torch.load would want to be told that it may trust TorchScript's types.
  std::vector<c10::IValue> pairs;
  for (const auto& [name, tensor] : state_of(module)) {
    pairs.push_back(c10::ivalue::Tuple::create(name, tensor.detach()));
  }
  const std::vector<char> bytes =
      torch::jit::pickle_save(c10::ivalue::Tuple::create(std::move(pairs)));
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  TORCH_CHECK(file.flush(), "save_state_dict: the file must be writable (got '", path, "')");
}

void load_state_dict(torch::nn::Module& module, const std::string& path) {
  const State state = with_seeds(read(path), module), own = state_of(module);
  check_fits(state, own);
  {
    const at::NoGradGuard no_grad;
    for (const auto& [name, target] : own) target.copy_(state.at(name));
  }
  module.apply([](torch::nn::Module& part) {
    if (auto* conv = part.as<SKConv2d>()) conv->reset_signs();
    if (auto* linear = part.as<SKLinear>()) linear->reset_signs();
  });
}

}  // namespace sketchlayers::nn
