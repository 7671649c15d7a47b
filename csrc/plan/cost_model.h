// What work costs on this machine: seconds as a sum over operations, bytes and calls, with
// constants that were measured. Plain C++.
#pragma once

#include <array>
#include <iosfwd>
#include <string>

namespace sketchlayers {

enum class Processor { kCpu, kCuda };
enum class Precision { kFloat32, kHalf, kFloat64 };
enum class Kind { kLinear, kPointwise, kSpatial, kChannel };
enum class Work { kDense, kForm, kFactored };

struct CostKey {
  Processor processor;
  Precision precision;
  Kind kind;
  Work work;
  bool training;
  bool channels_last;  // how the images lie in memory
};

struct Amount {
  double multiply_adds;
  double elements;  // of the images that are read and written
  double weights;   // elements of the weight, or of its factors
};

// Seconds of a call, and of each unit of its amount.
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

  const Cost& cost(const CostKey& key) const { return costs_[index(key)]; }

  // Replaces the constants of the lines that are there; others stay. A line is
  //   cpu float32 channel factored training CALL MULTIPLY_ADD ELEMENT WEIGHT
  // with seconds, or empty, or a comment after #; the kind of the layer may be `all`. It counts for
  // both memory formats, or with the word channels_last before the numbers for that one. Raises
  // std::invalid_argument and changes nothing if a line is not.
  void read(std::istream& text);

 private:
  static size_t index(const CostKey& key);
  std::array<Cost, 2 * 3 * 4 * 3 * 2 * 2> costs_;
};

// The planner's; replaced as a whole by load_cost_model, so calls on other threads see one or the
// other.
const CostModel& cost_model();
void load_cost_model(const std::string& text);
void reset_cost_model();

}  // namespace sketchlayers
