// What work costs on this machine: seconds as a sum over operations, bytes and calls, with
// constants that were measured. Plain C++.
#pragma once

#include <array>
#include <cstddef>
#include <iosfwd>
#include <string>

namespace sketchlayers {

// For the half types CPUs differ by more than their speed: on some, PyTorch hands them to oneDNN,
// and some of these multiply bfloat16 by AMX. In other types all are kCpu.
enum class Processor { kCpu, kOneDnn, kAmx, kCuda };
enum class Precision { kFloat32, kBFloat16, kFloat16, kFloat64 };
enum class Kind { kLinear, kPointwise, kSpatial, kChannel };
enum class Work { kDense, kForm, kFactored, kPanels };  // kPanels: factored, by cpu/panels.h

struct CostKey {
  Processor processor;
  Precision precision;
  Work work;
  Kind kind;
  bool channels_last;  // how the images lie in memory
};

struct Amount {
  double multiply_adds;
  double elements;  // of the images that are read and written
  double weights;   // elements of the weight, or of its factors
};

// Seconds of a call, and of each unit of its amount; or by how many times they grow in training.
struct Cost {
  double call = 0;
  double multiply_add = 0;
  double element = 0;
  double weight = 0;

  double seconds(const Amount& amount) const {
    return call + multiply_add * amount.multiply_adds + element * amount.elements +
           weight * amount.weights;
  }
};

class CostModel {
 public:
  // The constants that come with the package.
  CostModel();

  // Whether constants were read beside those that come with the package.
  bool is_of_this_machine(const CostKey& key) const { return own_[work_index(key)]; }

  // Of a forward call, or of one with its backward.
  Cost cost(const CostKey& key, bool training) const;

  // Replaces the constants of the lines that are there; others stay. A line is
  //   cpu float32 factored channel CALL MULTIPLY_ADD ELEMENT WEIGHT
  // with seconds of a forward call, which count for both memory formats, or with the word
  // channels_last before the numbers for that one; or
  //   cpu float32 factored channel training CALL MULTIPLY_ADD ELEMENT WEIGHT
  // with the times by which these grow in training; or empty, or a comment after #. Words for
  // several: `cpu` means every kind of CPU, `half` bfloat16 and float16, `float` these and float32,
  // `conv` spatial and channel, and `all` everything. Raises std::invalid_argument and changes
  // nothing if a line is not.
  void read(std::istream& text);

 private:
  static constexpr size_t kProcessors = 4, kPrecisions = 4, kWorks = 4, kKinds = 4;
  static size_t work_index(const CostKey& key);
  static size_t kind_index(const CostKey& key);
  static size_t index(const CostKey& key);

  std::array<Cost, kProcessors * kPrecisions * kWorks * kKinds * 2> forward_;
  std::array<Cost, kProcessors * kPrecisions * kWorks * kKinds> training_;
  std::array<bool, kProcessors * kPrecisions * kWorks> own_{};
};

// The planner's; replaced as a whole by load_cost_model, so calls on other threads see one or the
// other.
const CostModel& cost_model();
void load_cost_model(const std::string& text);
void reset_cost_model();

}  // namespace sketchlayers
