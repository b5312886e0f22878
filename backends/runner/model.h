// A runtime, and a file that it has loaded: what measuring needs of them, and no more.
#ifndef EDGEPRUNE_RUNNER_MODEL_H
#define EDGEPRUNE_RUNNER_MODEL_H

#include <stddef.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "job.h"

namespace edgeprune {

struct Tensor {
  std::string type;  // as PyTorch calls it: float32
  std::vector<int> sizes;
  size_t bytes;
};

// What one call of an operator took; `name` is the runtime's own word.
struct Event {
  std::string name;
  double ms;
};

class Model {
 public:
  virtual ~Model() = default;
  virtual std::vector<Tensor> inputs() const = 0;
  // Known after the first run.
  virtual std::vector<Tensor> outputs() const = 0;
  // `bytes` are read at each run, and must stay.
  virtual void give(size_t input, const void* bytes) = 0;
  virtual void run() = 0;
  virtual const void* output(size_t number) const = 0;
  // What the last run did, of a model that was loaded for it.
  virtual std::vector<Event> events() { return {}; }
};

class Runtime {
 public:
  virtual ~Runtime() = default;
  // Its own word for its version; empty where it has none.
  virtual std::string version() const { return ""; }
  virtual std::unique_ptr<Model> load(const ModelJob& model, bool traced) = 0;
};

using Open = std::unique_ptr<Runtime> (*)(const Job&);

// Runtimes that were linked in, by name; each has one of these in its source.
struct RuntimeNamed {
  RuntimeNamed(const char* name, Open open);
};

// Ends the program if the job's runtime was not linked in.
std::unique_ptr<Runtime> open_runtime(const Job& job);

// Its handle; ends the program if it cannot be loaded.
void* load_library(const std::string& path);

}  // namespace edgeprune

#endif
