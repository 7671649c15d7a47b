#include "plan/cost_model.h"

#include <atomic>
#include <cctype>
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

// A word for some of the values of an enum: bits by their numbers.
struct Word {
  const char* name;
  unsigned values;
};

constexpr Word kProcessorWords[] = {
    {"cpu", 7}, {"onednn", 2}, {"amx", 4}, {"cuda", 8}, {"all", 15}};
constexpr Word kPrecisionWords[] = {{"float32", 1}, {"bfloat16", 2}, {"float16", 4}, {"float64", 8},
                                    {"half", 6},    {"float", 7},    {"all", 15}};
constexpr Word kWorkWords[] = {
    {"dense", 1}, {"form", 2}, {"factored", 4}, {"panels", 8}, {"all", 15}};
constexpr Word kKindWords[] = {{"linear", 1},  {"pointwise", 2}, {"spatial", 4},
                               {"channel", 8}, {"conv", 12},     {"all", 15}};

template <size_t N>
unsigned find(const Word (&words)[N], const std::string& name, const std::string& line) {
  for (const Word& word : words) {
    if (name == word.name) return word.values;
  }
  throw std::invalid_argument("planner constants: unknown word '" + name + "' in the line '" +
                              line + "'");
}

// One line of constants; none where it is empty.
struct Line {
  bool empty = false;
  unsigned processors, precisions, works, kinds;
  bool channels_last = false;
  bool training = false;
  Cost cost;
};

Line parse(const std::string& text) {
  Line line;
  std::istringstream words(text);
  std::string processor, precision, work, kind, rest;
  if (!(words >> processor)) {
    line.empty = true;
    return line;
  }
  words >> precision >> work >> kind >> std::ws;
  if (std::isalpha(words.peek())) {
    words >> rest;
    line.channels_last = rest == "channels_last";
    line.training = rest == "training";
    if (!line.channels_last && !line.training) words.setstate(std::ios::failbit);
  }
  Cost& cost = line.cost;
  words >> cost.call >> cost.multiply_add >> cost.element >> cost.weight;
  const bool complete = !words.fail() && !(words >> rest);
  const auto valid = [](double number) { return std::isfinite(number) && number >= 0; };
  if (!complete || !valid(cost.call) || !valid(cost.multiply_add) || !valid(cost.element) ||
      !valid(cost.weight)) {
    throw std::invalid_argument(
        "planner constants: a line must be four words, possibly channels_last or training, and "
        "four numbers that are at least 0 (got '" +
        text + "')");
  }
  line.processors = find(kProcessorWords, processor, text);
  line.precisions = find(kPrecisionWords, precision, text);
  line.works = find(kWorkWords, work, text);
  line.kinds = find(kKindWords, kind, text);
  return line;
}

// body(key) for all combinations of a line, with contiguous images.
template <typename Body>
void for_keys(const Line& line, size_t processors, size_t precisions, size_t works, size_t kinds,
              const Body& body) {
  for (size_t p = 0; p < processors; ++p) {
    for (size_t t = 0; t < precisions; ++t) {
      for (size_t w = 0; w < works; ++w) {
        for (size_t k = 0; k < kinds; ++k) {
          const unsigned all =
              line.processors >> p & line.precisions >> t & line.works >> w & line.kinds >> k;
          if ((all & 1) == 0) continue;
          body(CostKey{static_cast<Processor>(p), static_cast<Precision>(t), static_cast<Work>(w),
                       static_cast<Kind>(k), false});
        }
      }
    }
  }
}

}  // namespace

CostModel::CostModel() {
  std::istringstream text(kBuiltinCosts);
  read(text);
  own_.fill(false);
}

Cost CostModel::cost(const CostKey& key, bool training) const {
  const Cost& once = forward_[index(key)];
  if (!training) return once;
  const Cost& times = training_[kind_index(key)];
  return {once.call * times.call, once.multiply_add * times.multiply_add,
          once.element * times.element, once.weight * times.weight};
}

size_t CostModel::work_index(const CostKey& key) {
  const size_t index =
      static_cast<size_t>(key.processor) * kPrecisions + static_cast<size_t>(key.precision);
  return index * kWorks + static_cast<size_t>(key.work);
}

size_t CostModel::kind_index(const CostKey& key) {
  return work_index(key) * kKinds + static_cast<size_t>(key.kind);
}

size_t CostModel::index(const CostKey& key) {
  return 2 * kind_index(key) + (key.channels_last ? 1 : 0);
}

void CostModel::read(std::istream& text) {
  CostModel next = *this;
  std::string words;
  while (std::getline(text, words)) {
    const Line line = parse(words.substr(0, words.find('#')));
    if (line.empty) continue;
    for_keys(line, kProcessors, kPrecisions, kWorks, kKinds, [&](CostKey key) {
      next.own_[work_index(key)] = true;
      if (line.training) {
        next.training_[kind_index(key)] = line.cost;
        return;
      }
      if (!line.channels_last) next.forward_[index(key)] = line.cost;
      key.channels_last = true;
      next.forward_[index(key)] = line.cost;
    });
  }
  *this = next;
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
