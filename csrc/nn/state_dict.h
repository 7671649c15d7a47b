// Parameters and buffers by the names of Python's state_dict(), in the files of torch.save.
#pragma once

#include <torch/nn/module.h>

#include <string>

namespace sketchlayers::nn {

// Writes pairs of names and tensors, which Python reads with
// model.load_state_dict(dict(torch.load(path))).
void save_state_dict(const torch::nn::Module& module, const std::string& path);

// Reads that, or what Python writes with torch.save(dict(model.state_dict()), path), and makes the
// signs of sketched layers anew. All names and shapes must be those of the module, integers must
// have its types, and seeds must not be negative; otherwise raises c10::Error and leaves the module
// as it is. PyTorch's reader of this format trusts what a file says of its sizes: load only files
// that you trust.
void load_state_dict(torch::nn::Module& module, const std::string& path);

}  // namespace sketchlayers::nn
