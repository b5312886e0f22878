// LiteRT's own C interface: compiled models. The structures are those of LiteRT 2.
//
// It takes delegates as accelerators, in the order of their registration. Ours comes before
// XNNPACK, as in the interpreter, or XNNPACK would have the linear layers: so the environment is
// made without accelerators, and gets both from here.
#include <stdlib.h>
#include <string.h>

#include "litert.h"

namespace edgeprune::litert {
namespace {

using Handle = void*;
constexpr int kCpu = 1;
constexpr size_t kAlignment = 64;
// Kinds of events: of LiteRT's own kernels, and of operators inside a delegate.
constexpr int kOperator = 2, kDelegateOperator = 8;

struct Option {  // of an environment
  int tag;
  struct {
    int kind;
    int64_t number;
  } value;
};
constexpr Option kNoAccelerators = {24, {2, 0}};

struct Layout {
  uint32_t rank;  // the bit above it says whether there are strides
  int32_t sizes[8];
  uint32_t strides[8];
};
struct TensorType {
  int element;
  Layout layout;
};
struct ProfilerEvent {
  const char* tag;
  int kind;
  uint64_t start_us, us;
  size_t memory_before[3], memory_after[3];
  uint64_t metadata[2];
  int source;
};
struct Accelerator {  // what describes XNNPACK's
  uint16_t header[4];
  int (*name)(Handle, const char**);
  int (*version)(Handle, int*);
  int (*hardware)(Handle, int*);
  int (*compiles)(Handle, bool*);
  int (*create)(void*, Handle, Handle, Handle, Handle*);
};

class Api {
 public:
  explicit Api(void* library) : library_(library) {}
  // Calls LiteRt<name>; ends the program if it fails.
  template <class... Arguments>
  void call(const std::string& what, const char* name, Arguments... arguments) const {
    const std::string symbol = std::string("LiteRt") + name;
    const int status = function<int(Arguments...)>(library_, symbol.c_str())(arguments...);
    if (status) fail(what, symbol + " failed with status " + std::to_string(status));
  }
  void* library() const { return library_; }

 private:
  void* library_;
};

// Accelerators are asked for a delegate by functions without data: the one that is being made.
const Plugin* making = nullptr;
void* made = nullptr;
int (*wrap)(void*, void (*)(void*), Handle*) = nullptr;

int our_name(Handle, const char** name) { return *name = "edgeprune", 0; }
int our_version(Handle, int* version) { return version[0] = 1, version[1] = version[2] = 0, 0; }
int our_hardware(Handle, int* hardware) { return *hardware = kCpu, 0; }
int ours_compiles(Handle, bool* compiles) { return *compiles = true, 0; }
int our_delegate(void*, Handle, Handle, Handle, Handle* delegate) {
  made = making->made();
  return wrap(made, making->destroy, delegate);
}

class CompiledModel final : public Model {
 public:
  CompiledModel(const Api& api, Handle environment, const Plugin* plugin, int threads,
                const ModelJob& job, bool traced)
      : api_(api), plugin_(plugin), file_(job.file), traced_(traced) {
    api.call(file_, "CreateModelFromFile", environment, file_.c_str(), &model_);
    Handle options;
    api.call(file_, "CreateOptions", &options);
    api.call(file_, "SetOptionsHardwareAccelerators", options, kCpu);
    add(options, "xnnpack", "num_threads = " + std::to_string(threads) + "\n");
    if (traced) add(options, "runtime_options_string", "enable_profiling = true\n");
    api.call(file_, "CreateCompiledModel", environment, model_, options, &compiled_);
    delegate_ = made;
    if (traced) api.call(file_, "CompiledModelGetProfiler", compiled_, &profiler_);
    find_signature(job.signature);
    find_tensors("Input", inputs_, input_order_);
    find_tensors("Output", outputs_, output_order_);
    given_.resize(inputs_.size());
  }

  std::vector<Tensor> inputs() const override { return described(inputs_, input_order_); }
  std::vector<Tensor> outputs() const override { return described(outputs_, output_order_); }
  void give(size_t input, const void* bytes) override { given_[input_order_[input]] = bytes; }

  void run() override {
    if (traced_) {
      api_.call(file_, "ResetProfiler", profiler_);
      api_.call(file_, "StartProfiler", profiler_);
      if (plugin_) plugin_->start_times(delegate_);
    }
    for (size_t i = 0; i < inputs_.size(); ++i)
      memcpy(inputs_[i].memory.get(), given_[i], inputs_[i].tensor.bytes);
    std::vector<Handle> from = handles(inputs_), to = handles(outputs_);
    api_.call(file_, "RunCompiledModel", compiled_, signature_, from.size(), from.data(), to.size(),
              to.data());
    if (traced_) api_.call(file_, "StopProfiler", profiler_);
  }

  const void* output(size_t number) const override {
    return outputs_[output_order_[number]].memory.get();
  }

  std::vector<Event> events() override {
    int count = 0;
    api_.call(file_, "GetNumProfilerEvents", profiler_, &count);
    std::vector<ProfilerEvent> held(count);
    api_.call(file_, "GetProfilerEvents", profiler_, count, held.data());
    std::vector<Event> found;
    for (const ProfilerEvent& each : held) {
      const double ms = static_cast<double>(each.us) / 1e3;
      if (each.kind == kOperator) found.push_back({std::string("cpu ") + each.tag, ms});
      if (each.kind == kDelegateOperator) found.push_back({each.tag, ms});
    }
    if (plugin_) plugin_->add_times(delegate_, found);
    return found;
  }

 private:
  struct Free {
    void operator()(void* memory) const { free(memory); }
  };
  struct Buffer {
    Tensor tensor;
    std::unique_ptr<void, Free> memory;
    Handle handle;
    Handle identity;  // of the model's tensor
    std::string name;
  };

  static void keep(void*) {}  // words that options point into live as long as the program

  void add(Handle options, const char* name, const std::string& text) {
    Handle more;
    api_.call(file_, "CreateOpaqueOptions", name, static_cast<void*>(strdup(text.c_str())), keep,
              &more);
    api_.call(file_, "AddOpaqueOptions", options, more);
  }

  void find_signature(const std::string& wanted) {
    size_t count = 0;
    api_.call(file_, "GetNumModelSignatures", model_, &count);
    std::string names;
    for (signature_ = 0; signature_ < count; ++signature_) {
      const char* name = nullptr;
      Handle signature;
      api_.call(file_, "GetModelSignature", model_, signature_, &signature);
      api_.call(file_, "GetSignatureKey", signature, &name);
      if (wanted.empty() || wanted == name) {
        named_ = !wanted.empty();
        entry_ = signature;
        return;
      }
      names += (names.empty() ? "" : ", ") + std::string(name);
    }
    fail(file_, "got signature '" + wanted + "', it has: " + names);
  }

  // `direction` is Input or Output.
  void find_tensors(const std::string& direction, std::vector<Buffer>& buffers,
                    std::vector<size_t>& order) {
    size_t count = 0;
    api_.call(file_, ("GetNumSignature" + direction + "s").c_str(), entry_, &count);
    for (size_t i = 0; i < count; ++i) {
      Handle tensor;
      const char* name = nullptr;
      api_.call(file_, ("GetSignature" + direction + "TensorByIndex").c_str(), entry_, i, &tensor);
      api_.call(file_, ("GetSignature" + direction + "Name").c_str(), entry_, i, &name);
      buffers.push_back(buffer(tensor, name));
    }
    std::vector<std::string> names;
    for (const Buffer& each : buffers) names.push_back(each.name);
    order = named_ ? in_order(names) : in_program_order(direction, buffers);
  }

  // Without a signature's name inputs come as the file lists them, not as the signature does.
  std::vector<size_t> in_program_order(const std::string& direction,
                                       const std::vector<Buffer>& buffers) const {
    Handle graph;
    api_.call(file_, "GetSignatureSubgraph", entry_, &graph);
    std::vector<size_t> order;
    for (size_t i = 0; i < buffers.size(); ++i) {
      Handle tensor;
      api_.call(file_, ("GetSubgraph" + direction).c_str(), graph, i, &tensor);
      for (size_t j = 0; j < buffers.size(); ++j)
        if (buffers[j].identity == tensor) order.push_back(j);
    }
    if (order.size() != buffers.size()) fail(file_, "its signature names other tensors");
    return order;
  }

  Buffer buffer(Handle tensor, const char* name) const {
    TensorType type = {};
    api_.call(file_, "GetRankedTensorType", tensor, &type);
    const Element kind = element(type.element);
    Tensor found{kind.name, {}, kind.size};
    for (uint32_t d = 0; d < (type.layout.rank & 0x7f); ++d) {
      const int size = type.layout.sizes[d];
      if (size < 1) fail(file_, std::string(name) + " has no size that is known");
      found.sizes.push_back(size);
      found.bytes *= static_cast<size_t>(size);
    }
    if (!found.bytes) fail(file_, std::string(name) + " is of " + kind.name);
    void* memory = nullptr;
    const size_t room = (found.bytes + kAlignment - 1) / kAlignment * kAlignment;
    if (posix_memalign(&memory, kAlignment, room)) fail(file_, "no memory for its tensors");
    Handle handle;
    const TensorType* described = &type;
    api_.call(file_, "CreateTensorBufferFromHostMemory", described, memory, found.bytes,
              static_cast<void*>(nullptr), &handle);
    return {found, std::unique_ptr<void, Free>(memory), handle, tensor, name};
  }

  static std::vector<Handle> handles(const std::vector<Buffer>& buffers) {
    std::vector<Handle> found;
    for (const Buffer& each : buffers) found.push_back(each.handle);
    return found;
  }

  static std::vector<Tensor> described(const std::vector<Buffer>& buffers,
                                       const std::vector<size_t>& order) {
    std::vector<Tensor> found;
    for (const size_t i : order) found.push_back(buffers[i].tensor);
    return found;
  }

  const Api& api_;
  const Plugin* plugin_;
  const std::string file_;
  const bool traced_;
  void* delegate_ = nullptr;
  Handle model_ = nullptr, compiled_ = nullptr, profiler_ = nullptr, entry_ = nullptr;
  size_t signature_ = 0;
  bool named_ = false;
  std::vector<Buffer> inputs_, outputs_;
  std::vector<size_t> input_order_, output_order_;
  std::vector<const void*> given_;
};

class Compiled final : public Runtime {
 public:
  explicit Compiled(Libraries libraries)
      : libraries_(std::move(libraries)), api_(libraries_.runtime) {
    const Plugin* plugin = libraries_.plugin.get();
    const Option* none = &kNoAccelerators;
    api_.call("LiteRT", "CreateEnvironment", plugin ? 1 : 0, plugin ? none : nullptr,
              &environment_);
    if (!plugin) return;
    making = plugin;
    wrap = function<int(void*, void (*)(void*), Handle*)>(api_.library(), "LiteRtWrapDelegate");
    add({{}, our_name, our_version, our_hardware, ours_compiles, our_delegate});
    add(**static_cast<Accelerator**>(dlsym_or_fail("LiteRtStaticLinkedAcceleratorCpuDef")));
  }

  std::unique_ptr<Model> load(const ModelJob& model, bool traced) override {
    return std::unique_ptr<Model>(new CompiledModel(api_, environment_, libraries_.plugin.get(),
                                                    libraries_.threads, model, traced));
  }

 private:
  void* dlsym_or_fail(const char* name) const {
    void* found = dlsym(api_.library(), name);
    if (!found) fail(libraries_.file, std::string("it has no ") + name);
    return found;
  }

  void add(const Accelerator& each) {
    const char* what = "delegate";
    Handle accelerator;
    api_.call(what, "CreateAccelerator", &accelerator);
    api_.call(what, "SetAcceleratorGetName", accelerator, each.name);
    api_.call(what, "SetAcceleratorGetVersion", accelerator, each.version);
    api_.call(what, "SetAcceleratorGetHardwareSupport", accelerator, each.hardware);
    api_.call(what, "SetIsAcceleratorDelegateResponsibleForJitCompilation", accelerator,
              each.compiles);
    api_.call(what, "SetDelegateFunction", accelerator, each.create);
    api_.call(what, "RegisterAccelerator", environment_, accelerator, static_cast<void*>(nullptr),
              static_cast<void (*)(void*)>(nullptr));
  }

  const Libraries libraries_;
  const Api api_;
  Handle environment_ = nullptr;
};

}  // namespace

std::unique_ptr<Runtime> open_compiled(Libraries libraries) {
  return std::unique_ptr<Runtime>(new Compiled(std::move(libraries)));
}

}  // namespace edgeprune::litert
