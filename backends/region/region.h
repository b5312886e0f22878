// A region: part of a network as a list of our operators, run one after the other.
//
// The bytes come from edgeprune/lower/region.py and may have been damaged on their way: everything
// is checked when they are loaded, so that running needs no checks. Knows no runtime; adapters give
// it the tensors and the threads.
#ifndef EDGEPRUNE_REGION_H
#define EDGEPRUNE_REGION_H

#include <stddef.h>
#include <stdint.h>

namespace edgeprune {

// Threads of the runtime.
class Threads {
 public:
  virtual int count() const = 0;
  // Calls work(task, part) for all parts, in any order and on any thread; false when it cannot.
  virtual bool each(int parts, void (*work)(void* task, int part), void* task) = 0;

 protected:
  ~Threads() = default;
};

// ``count`` pieces of work in as many runs of neighbours as there are threads.
template <class Run>
bool share(Threads& threads, int most, int count, Run run) {
  struct Task {
    Run& run;
    int count, parts;
  } task{run, count, 0};
  if (!count) return true;
  const int wanted = threads.count() < most ? threads.count() : most;
  task.parts = wanted < 1 ? 1 : wanted < count ? wanted : count;
  const auto work = [](void* held, int part) {
    const Task& t = *static_cast<Task*>(held);
    const auto from = [&t](int p) { return static_cast<int>(int64_t{t.count} * p / t.parts); };
    t.run(part, from(part), from(part + 1));
  };
  if (task.parts == 1) return work(&task, 0), true;
  return threads.each(task.parts, work, &task);
}

// The bytes: this header, the tensors, the nodes, constants in floats, weights in int8.
struct RegionHeader {
  char magic[4];  // "EPRG"
  uint32_t version, tensors, nodes, inputs, outputs;
  uint64_t arena_bytes, float_bytes, int8_bytes;
};

struct TensorRecord {
  enum Place : uint32_t { kInput, kOutput, kArena, kFloats, kInt8s };

  enum Type : uint32_t { kFloat32, kFloat16 };  // of all but weights in int8

  uint32_t place, type;
  int32_t dims[4];  // leading ones where there are fewer
  uint64_t offset;  // in bytes; of an input or output: its number
};

struct NodeRecord {
  // Operands in order, -1 for one that is left out; numbers; a real number.
  enum Op : uint32_t {
    kAttention = 1,  // q k v [mask] out [scores] [real]; heads, kv_heads, causal; scale
    kLayerNorm,      // x [residual] weight bias out [sum]; eps
    kLinearInt8,     // x weight scales [bias] out; activation
    kTokenSelect,    // x scores [pinned] out; the place of the tokens in x's dims
  };

  uint32_t op;
  int32_t operands[7];
  int32_t whole[3];
  float real;
};

struct Region;

// Null, and why not, if the bytes are no region or ask for what the kernels cannot do. The bytes
// are not needed afterwards.
Region* region_load(const void* bytes, size_t count, int threads, const char** why_not);
void region_free(Region* region);

int region_inputs(const Region& region);
int region_outputs(const Region& region);
// The elements of an input or output, and whether they are half floats; else they are float32.
int64_t region_input_size(const Region& region, int number);
int64_t region_output_size(const Region& region, int number);
bool region_input_is_half(const Region& region, int number);
bool region_output_is_half(const Region& region, int number);

int region_nodes(const Region& region);
const char* region_op(const Region& region, int node);

// Runs a node; all of them, in order, are one inference. For one caller at a time. False when the
// threads failed. Half floats are passed as what they are, by a pointer to floats.
bool region_run(const Region& region, int node, const float* const* inputs, float* const* outputs,
                Threads& threads);

}  // namespace edgeprune

#endif
