#include "litert.h"

#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <map>

namespace edgeprune::litert {
namespace {

void report(const char* problem) { fprintf(stderr, "%s\n", problem); }

Libraries opened(const Job& job) {
  Libraries found;
  found.threads = job.threads;
  for (const std::string& file : job.libraries) {
    void* library = load_library(file);
    const bool runs =
        dlsym(library, "TfLiteInterpreterCreate") || dlsym(library, "LiteRtCreateCompiledModel");
    if (runs ? found.runtime != nullptr : found.plugin != nullptr)
      fail(file, "there is one of its kind already; wanted LiteRT, and a delegate or none");
    if (runs) {
      found.runtime = library;
      found.file = file;
      continue;
    }
    found.plugin.reset(new Plugin);
    found.plugin->create = function<std::remove_pointer_t<decltype(Plugin::create)>>(
        library, "tflite_plugin_create_delegate");
    found.plugin->destroy = function<void(void*)>(library, "tflite_plugin_destroy_delegate");
    found.plugin->time = reinterpret_cast<decltype(Plugin::time)>(dlsym(library, "ep_litert_time"));
  }
  if (!found.runtime)
    fail("library", "none has LiteRT. Give libLiteRt.so, libtensorflowlite_c.so or _jni.so");
  return found;
}

std::unique_ptr<Runtime> open(const Job& job) {
  Libraries libraries = opened(job);
  const bool interprets = dlsym(libraries.runtime, "TfLiteInterpreterCreate");
  return interprets ? open_interpreter(std::move(libraries)) : open_compiled(std::move(libraries));
}

const RuntimeNamed here("litert", open);

}  // namespace

void* Plugin::made() const {
  void* delegate = create(nullptr, nullptr, 0, report);
  if (!delegate) fail("delegate", "it cannot be made");
  return delegate;
}

void Plugin::start_times(void* delegate) const {
  if (!time) return;
  Time* each;
  for (int32_t op = 0; (each = time(delegate, op)); ++op) each->nanoseconds = each->calls = 0;
}

void Plugin::add_times(void* delegate, std::vector<Event>& events) const {
  if (!time) return;
  const Time* each;
  for (int32_t op = 0; (each = time(delegate, op)); ++op) {
    if (!each->calls) continue;
    // A profiler sees these as kernels of its own, and tells microseconds.
    const std::string seen = std::string("cpu ") + each->name;
    events.erase(std::remove_if(events.begin(), events.end(),
                                [&](const Event& event) { return event.name == seen; }),
                 events.end());
    // What one call took is not told, only how many there were.
    const double ms =
        static_cast<double>(each->nanoseconds) / 1e6 / static_cast<double>(each->calls);
    events.insert(events.end(), static_cast<size_t>(each->calls), {each->name, ms});
  }
}

Element element(int type) {
  static const std::map<int, Element> known = {
      {1, {"float32", 4}},  {2, {"int32", 4}},   {3, {"uint8", 1}},   {4, {"int64", 8}},
      {6, {"bool", 1}},     {7, {"int16", 2}},   {9, {"int8", 1}},    {10, {"float16", 2}},
      {11, {"float64", 8}}, {16, {"uint32", 4}}, {17, {"uint16", 2}}, {19, {"bfloat16", 2}},
  };
  const auto found = known.find(type);
  return found == known.end() ? Element{"type " + std::to_string(type), 0} : found->second;
}

std::vector<size_t> in_order(const std::vector<std::string>& names) {
  std::vector<std::pair<long, size_t>> numbered;
  for (size_t i = 0; i < names.size(); ++i) {
    const size_t at = names[i].rfind('_');
    char* end = nullptr;
    const char* digits = names[i].c_str() + (at == std::string::npos ? names[i].size() : at + 1);
    const long number = strtol(digits, &end, 10);
    numbered.push_back({*digits && !*end ? number : static_cast<long>(i), i});
  }
  std::stable_sort(numbered.begin(), numbered.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<size_t> positions;
  for (const auto& each : numbered) positions.push_back(each.second);
  return positions;
}

}  // namespace edgeprune::litert
