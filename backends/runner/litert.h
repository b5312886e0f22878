// LiteRT in the runner, by either of its C interfaces; which, the library that is given decides.
#ifndef EDGEPRUNE_RUNNER_LITERT_H
#define EDGEPRUNE_RUNNER_LITERT_H

#include <dlfcn.h>
#include <stdint.h>

#include <memory>
#include <string>
#include <vector>

#include "fail.h"
#include "model.h"

namespace edgeprune::litert {

// A function of a library, by its name; ends the program if there is none.
template <class F>
F* function(void* library, const char* name) {
  F* found = reinterpret_cast<F*>(dlsym(library, name));
  if (!found) fail("library", std::string("it has no ") + name);
  return found;
}

// A delegate's library, as TFLite loads them.
struct Plugin {
  struct Time {  // as in backends/litert/share.h
    const char* name;
    int64_t nanoseconds, calls;
  };
  void* (*create)(const char** keys, const char** values, size_t count,
                  void (*report)(const char*));
  void (*destroy)(void* delegate);
  Time* (*time)(void* delegate, int32_t op);  // null: it does not tell

  void* made() const;
  void start_times(void* delegate) const;
  void add_times(void* delegate, std::vector<Event>& events) const;
};

struct Libraries {
  std::string file;
  void* runtime = nullptr;
  std::unique_ptr<Plugin> plugin;  // null: none
  int threads = 1;
};

// TFLite's: libtensorflowlite_c.so, and libtensorflowlite_jni.so of Android apps.
std::unique_ptr<Runtime> open_interpreter(Libraries libraries);
// LiteRT's: libLiteRt.so.
std::unique_ptr<Runtime> open_compiled(Libraries libraries);

// Of an element, by LiteRT's and TFLite's number for it; size 0: not known.
struct Element {
  std::string name;
  size_t size;
};
Element element(int type);

// Positions of args_0, args_1, ... args_10 by their numbers; of other names as they are.
std::vector<size_t> in_order(const std::vector<std::string>& names);

}  // namespace edgeprune::litert

#endif
