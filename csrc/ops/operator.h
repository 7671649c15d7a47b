// Operators as C++ calls them. The arguments of one with many are a struct, a "call", which names
// the operator, and whose `unpacked<kernel>` is a kernel as the dispatcher calls it: with the
// arguments of the schema, one by one. Nothing else spells that list out.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <string>

namespace sketchlayers {

// The operator's handle; callers keep it in a static variable.
template <typename Function>
c10::TypedOperatorHandle<Function> find_operator(const char* name) {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow((std::string("sketchlayers::") + name).c_str(), "")
      .template typed<Function>();
}

// The same, of a call.
template <typename Call>
auto find_operator() {
  return find_operator<decltype(Call::template unpacked<nullptr>)>(Call::kName);
}

}  // namespace sketchlayers
