#include "plan/cost_model.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <vector>

namespace sketchlayers {
namespace {

constexpr const char* kBuiltinCosts =
#include "plan/builtin_costs.txt"
    ;

constexpr std::array<const char*, 2> kProcessors = {"cpu", "cuda"};
constexpr std::array<const char*, 3> kPrecisions = {"float32", "half", "float64"};
constexpr std::array<const char*, 4> kKinds = {"linear", "pointwise", "spatial", "channel"};
constexpr std::array<const char*, 3> kWorks = {"dense", "form", "factored"};
constexpr std::array<const char*, 2> kModes = {"forward", "training"};

template <size_t N>
size_t find(const std::array<const char*, N>& names, const std::string& name,
            const std::string& line) {
  const auto found = std::find(names.begin(), names.end(), name);
  if (found != names.end()) return static_cast<size_t>(found - names.begin());
  throw std::invalid_argument("planner constants: unknown word '" + name + "' in the line '" +
                              line + "'");
}

}  // namespace

CostModel::CostModel() {
  std::istringstream text(kBuiltinCosts);
  read(text);
}

size_t CostModel::index(const CostKey& key) {
  size_t index = static_cast<size_t>(key.processor);
  index = index * kPrecisions.size() + static_cast<size_t>(key.precision);
  index = index * kKinds.size() + static_cast<size_t>(key.kind);
  index = index * kWorks.size() + static_cast<size_t>(key.work);
  index = 2 * index + (key.training ? 1 : 0);
  return 2 * index + (key.channels_last ? 1 : 0);
}

void CostModel::read(std::istream& text) {
  auto costs = costs_;
  std::string line;
  while (std::getline(text, line)) {
    line = line.substr(0, line.find('#'));
    std::istringstream words(line);
    std::string processor, precision, kind, work, mode;
    if (!(words >> processor)) continue;
    Cost cost;
    std::string rest;
    words >> precision >> kind >> work >> mode >> std::ws;
    const bool one_format = words.peek() == 'c';
    if (one_format) {
      words >> rest;
      if (rest != "channels_last") words.setstate(std::ios::failbit);
    }
    words >> cost.call >> cost.multiply_add >> cost.element >> cost.weight;
    const bool complete = !words.fail() && !(words >> rest);
    const auto valid = [](double seconds) { return std::isfinite(seconds) && seconds >= 0; };
    if (!complete || !valid(cost.call) || !valid(cost.multiply_add) || !valid(cost.element) ||
        !valid(cost.weight)) {
      throw std::invalid_argument(
          "planner constants: a line must be five words, possibly channels_last, and four numbers "
          "of seconds that are at least 0 (got '" +
          line + "')");
    }
    const bool all = kind == "all";
    const size_t first = all ? 0 : find(kKinds, kind, line);
    CostKey key{static_cast<Processor>(find(kProcessors, processor, line)),
                static_cast<Precision>(find(kPrecisions, precision, line)),
                Kind::kLinear,
                static_cast<Work>(find(kWorks, work, line)),
                find(kModes, mode, line) == 1,
                true};
    for (size_t k = first; k < (all ? kKinds.size() : first + 1); ++k) {
      key.kind = static_cast<Kind>(k);
      costs[index(key)] = cost;
      if (!one_format) costs[index(key) - 1] = cost;  // channels that lie apart
    }
  }
  costs_ = costs;
}

namespace {

// Models that were replaced stay alive: a call may be reading one.
class Current {
 public:
  Current() { set(std::make_unique<CostModel>()); }
  const CostModel& get() const { return *current_.load(std::memory_order_acquire); }
  void set(std::unique_ptr<CostModel> model) {
    const std::lock_guard<std::mutex> lock(mutex_);
    models_.push_back(std::move(model));
    current_.store(models_.back().get(), std::memory_order_release);
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<CostModel>> models_;
  std::atomic<const CostModel*> current_{nullptr};
};

Current& current() {
  static Current instance;
  return instance;
}

}  // namespace

const CostModel& cost_model() { return current().get(); }

void load_cost_model(const std::string& text) {
  auto model = std::make_unique<CostModel>(cost_model());
  std::istringstream lines(text);
  model->read(lines);
  current().set(std::move(model));
}

void reset_cost_model() { current().set(std::make_unique<CostModel>()); }

}  // namespace sketchlayers
