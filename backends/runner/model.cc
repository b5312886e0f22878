#include "model.h"

#include <dlfcn.h>

#include <map>

#include "fail.h"

namespace edgeprune {
namespace {

std::map<std::string, Open>& known() {
  static std::map<std::string, Open> runtimes;
  return runtimes;
}

}  // namespace

RuntimeNamed::RuntimeNamed(const char* name, Open open) { known()[name] = open; }

std::unique_ptr<Runtime> open_runtime(const Job& job) {
  const auto found = known().find(job.runtime);
  if (found != known().end()) return found->second(job);
  std::string names;
  for (const auto& each : known()) names += (names.empty() ? "" : ", ") + each.first;
  fail("runtime", "this runner has no '" + job.runtime + "', it has: " + names);
}

void* load_library(const std::string& path) {
  // A name without a folder would be looked for elsewhere.
  const std::string place = path.find('/') == std::string::npos ? "./" + path : path;
  void* library = dlopen(place.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (!library) fail(path, dlerror());
  return library;
}

}  // namespace edgeprune
