// Runs a network that export.py has packaged over a folder of images, without Python.
//
//   classify NETWORK.pt2 FOLDER [BATCH]
//
// Images are binary PPM files (`mogrify -format ppm *.jpg` makes them). No call names the library
// of sketched layers: linked in, it brings the operators that the package calls.
#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;

// The next number of a PPM header; comments go from # to the end of their line.
int64_t header_number(std::istream& file) {
  while (file >> std::ws && file.peek() == '#') file.ignore(1 << 20, '\n');
  int64_t number = 0;
  file >> number;
  return number;
}

// (3, height, width), uint8.
at::Tensor read_ppm(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::string magic(2, ' ');
  file.read(magic.data(), 2);
  const int64_t width = header_number(file), height = header_number(file);
  const int64_t brightest = header_number(file);
  constexpr int64_t kLargest = 1 << 15;
  if (!file || magic != "P6" || brightest != 255 || std::min(width, height) < 1 ||
      std::max(width, height) > kLargest) {
    throw std::runtime_error(path.string() + " is no binary PPM image with 8 bits a colour");
  }
  file.get();  // the one white space after the header
  const at::Tensor pixels = at::empty({height, width, 3}, at::kByte);
  file.read(reinterpret_cast<char*>(pixels.mutable_data_ptr<uint8_t>()), pixels.numel());
  if (!file) throw std::runtime_error(path.string() + " ends before its last pixel");
  return pixels.permute({2, 0, 1});
}

// The middle square of the image, after its shorter side was resized to `size`.
at::Tensor squared(const at::Tensor& image, int64_t size) {
  const int64_t height = image.size(1), width = image.size(2), shorter = std::min(height, width);
  const int64_t rows = std::max(size, height * size / shorter);
  const int64_t columns = std::max(size, width * size / shorter);
  const at::Tensor resized = at::_upsample_bilinear2d_aa(
      image.to(at::kFloat).unsqueeze(0), {rows, columns}, /*align_corners=*/false)[0];
  return resized.narrow(1, (rows - size) / 2, size)
      .narrow(2, (columns - size) / 2, size)
      .round()
      .clamp(0, 255)
      .to(at::kByte);
}

std::vector<fs::path> images_in(const fs::path& folder) {
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == ".ppm") paths.push_back(entry.path());
  }
  if (paths.empty()) throw std::runtime_error("no .ppm images in " + folder.string());
  std::sort(paths.begin(), paths.end());
  return paths;
}

std::vector<std::string> lines(const std::string& text) {
  std::vector<std::string> found;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) found.push_back(line);
  return found;
}

void classify(const std::string& package, const fs::path& folder, int64_t batch) {
  if (!fs::exists(package)) throw std::runtime_error("no package " + package);
  const std::vector<fs::path> paths = images_in(folder);
  torch::inductor::AOTIModelPackageLoader network(package);
  const auto metadata = network.get_metadata();
  const std::vector<std::string> classes = lines(metadata.at("classes"));
  const int64_t size = std::stoll(metadata.at("size"));

  std::vector<at::Tensor> images;
  for (const fs::path& path : paths) images.push_back(squared(read_ppm(path), size));
  const std::vector<at::Tensor> batches = at::stack(images).split(batch);

  network.run({batches.front()});  // the first call is slower
  std::vector<at::Tensor> outputs;
  const auto start = std::chrono::steady_clock::now();
  for (const at::Tensor& inputs : batches) outputs.push_back(network.run({inputs}).front());
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;

  const auto [probabilities, best] = at::cat(outputs).max(1);
  for (size_t i = 0; i < paths.size(); ++i) {
    const size_t label = static_cast<size_t>(best[static_cast<int64_t>(i)].item<int64_t>());
    std::printf("%s: %s (%.1f %%)\n", paths[i].filename().c_str(), classes.at(label).c_str(),
                100 * probabilities[static_cast<int64_t>(i)].item<double>());
  }
  std::printf("%zu images in %.3f s: %.1f images per second\n", paths.size(), elapsed.count(),
              static_cast<double>(paths.size()) / elapsed.count());
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t batch = argc == 4 ? std::atoll(argv[3]) : 16;
  if (argc < 3 || argc > 4 || batch < 1) {
    std::fprintf(stderr, "usage: classify NETWORK.pt2 FOLDER [BATCH]\n");
    return 2;
  }
  try {
    const c10::InferenceMode inference;
    classify(argv[1], argv[2], batch);
    return 0;
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "classify: %s\n", error.what_without_backtrace());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "classify: %s\n", error.what());
  }
  return 1;
}
