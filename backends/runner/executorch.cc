// ExecuTorch in the runner: .pte files.
//
// Only its core interface is used, which has no types of the C++ library in it: the runner may come
// with another C++ library than ExecuTorch.
#include <executorch/extension/data_loader/mmap_data_loader.h>
#include <executorch/extension/memory_allocator/malloc_memory_allocator.h>
#include <executorch/runtime/core/event_tracer.h>
#include <executorch/runtime/core/exec_aten/util/dim_order_util.h>
#include <executorch/runtime/executor/method.h>
#include <executorch/runtime/executor/program.h>
#include <executorch/runtime/platform/runtime.h>

#include "fail.h"
#include "model.h"

// The wheel has its library of threads, and no header for it.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  bool _unsafe_reset_threadpool(uint32_t threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace edgeprune {
namespace {

namespace et = executorch::runtime;
using executorch::aten::ScalarType;
using executorch::aten::TensorImpl;
using executorch::extension::MallocMemoryAllocator;
using executorch::extension::MmapDataLoader;
using ETensor = executorch::aten::Tensor;

std::string code(et::Error error) {
  return std::string(et::to_string(error)) + " (" + std::to_string(static_cast<int>(error)) + ")";
}

void check(et::Error error, const std::string& what) {
  if (error != et::Error::Ok) fail(what, code(error));
}

template <class T>
T value(et::Result<T> result, const std::string& what) {
  if (!result.ok()) fail(what, code(result.error()));
  return std::move(*result);
}

std::string type_name(ScalarType type) {
  switch (type) {
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::BFloat16:
      return "bfloat16";
    default:
      return "type " + std::to_string(static_cast<int>(type));
  }
}

// Keeps what an execution does. Delegates write names into memory of their own: they are copied.
class Tracer final : public et::EventTracer {
 public:
  std::vector<Event> events;

  et::EventTracerEntry start_profiling(const char* name, et::ChainID, et::DebugHandle) override {
    return started(name);
  }
  et::EventTracerEntry start_profiling_delegate(const char* name, et::DelegateDebugIntId) override {
    return started(name);
  }
  void end_profiling(et::EventTracerEntry entry) override { ended(entry); }
  void end_profiling_delegate(et::EventTracerEntry entry, const void*, size_t) override {
    ended(entry);
  }
  void log_profiling_delegate(const char* name, et::DelegateDebugIntId, et_timestamp_t start,
                              et_timestamp_t end, const void*, size_t) override {
    events.push_back({named(name), milliseconds(start, end)});
  }

  void create_event_block(const char*) override {}
  void track_allocation(et::AllocatorID, size_t) override {}
  et::AllocatorID track_allocator(const char*) override { return 0; }
  void set_delegation_intermediate_output_filter(et::EventTracerFilterBase*) override {}
  et::Result<bool> log_evalue(const et::EValue&, et::LoggedEValueType) override { return true; }
  et::Result<bool> log_intermediate_output_delegate(const char*, et::DelegateDebugIntId,
                                                    const ETensor&) override {
    return true;
  }
  et::Result<bool> log_intermediate_output_delegate(const char*, et::DelegateDebugIntId,
                                                    const et::ArrayRef<ETensor>) override {
    return true;
  }
  et::Result<bool> log_intermediate_output_delegate(const char*, et::DelegateDebugIntId,
                                                    const int&) override {
    return true;
  }
  et::Result<bool> log_intermediate_output_delegate(const char*, et::DelegateDebugIntId,
                                                    const bool&) override {
    return true;
  }
  et::Result<bool> log_intermediate_output_delegate(const char*, et::DelegateDebugIntId,
                                                    const double&) override {
    return true;
  }

 private:
  static std::string named(const char* name) { return name ? name : "unnamed"; }
  static double milliseconds(et_timestamp_t start, et_timestamp_t end) {
    const et_tick_ratio_t ratio = et::pal_ticks_to_ns_multiplier();
    return static_cast<double>(end - start) * static_cast<double>(ratio.numerator) /
           static_cast<double>(ratio.denominator) / 1e6;
  }
  et::EventTracerEntry started(const char* name) {
    et::EventTracerEntry entry = {};
    entry.event_id = static_cast<int64_t>(events.size());
    entry.delegate_event_id_type = et::DelegateDebugIdType::kNone;
    events.push_back({named(name), 0});
    entry.start_time = et::pal_current_ticks();
    return entry;
  }
  void ended(const et::EventTracerEntry& entry) {
    const et_timestamp_t now = et::pal_current_ticks();
    if (entry.event_id < static_cast<int64_t>(events.size()))
      events[entry.event_id].ms = milliseconds(entry.start_time, now);
  }
};

// What a method writes while it runs, as large as its plan says.
struct Memory {
  std::vector<std::vector<uint8_t>> buffers;
  std::vector<et::Span<uint8_t>> spans;

  explicit Memory(const et::MethodMeta& meta) {
    for (size_t i = 0; i < meta.num_memory_planned_buffers(); ++i)
      buffers.emplace_back(value(meta.memory_planned_buffer_size(i), "memory plan"));
    for (auto& buffer : buffers) spans.emplace_back(buffer.data(), buffer.size());
  }
};

struct Input {
  ScalarType type;
  size_t bytes;
  std::vector<TensorImpl::SizesType> sizes;
  std::vector<TensorImpl::DimOrderType> order;
  std::vector<TensorImpl::StridesType> strides;
  std::unique_ptr<TensorImpl> tensor;

  explicit Input(const et::TensorInfo& info)
      : type(info.scalar_type()),
        bytes(info.nbytes()),
        sizes(info.sizes().begin(), info.sizes().end()),
        order(info.dim_order().begin(), info.dim_order().end()),
        strides(sizes.size()) {
    check(et::dim_order_to_stride(sizes.data(), order.data(), sizes.size(), strides.data()),
          "input");
  }
  void give(const void* data) {
    tensor.reset(new TensorImpl(type, sizes.size(), sizes.data(), const_cast<void*>(data),
                                order.data(), strides.data()));
  }
};

class ExecutorchModel final : public Model {
 public:
  ExecutorchModel(const ModelJob& model, bool traced)
      : file_(model.file),
        loader_(value(MmapDataLoader::from(file_.c_str(), MmapDataLoader::MlockConfig::NoMlock),
                      file_)),
        program_(value(et::Program::load(&loader_, et::Program::Verification::InternalConsistency),
                       file_)),
        meta_(value(program_.method_meta("forward"), file_)),
        memory_(meta_),
        planned_({memory_.spans.data(), memory_.spans.size()}),
        manager_(&loaded_, &planned_, &temporary_),
        method_(
            value(program_.load_method("forward", &manager_, traced ? &tracer_ : nullptr), file_)) {
    for (size_t i = 0; i < meta_.num_inputs(); ++i)
      inputs_.emplace_back(value(meta_.input_tensor_meta(i), file_));
  }

  std::vector<Tensor> inputs() const override {
    std::vector<Tensor> found;
    for (const Input& each : inputs_)
      found.push_back({type_name(each.type), {each.sizes.begin(), each.sizes.end()}, each.bytes});
    return found;
  }

  std::vector<Tensor> outputs() const override {
    std::vector<Tensor> found;
    for (size_t i = 0; i < method_.outputs_size(); ++i) {
      const ETensor& each = tensor(i);
      found.push_back({type_name(each.scalar_type()),
                       {each.sizes().begin(), each.sizes().end()},
                       each.nbytes()});
    }
    return found;
  }

  void give(size_t input, const void* bytes) override { inputs_[input].give(bytes); }

  // Inputs are given anew: their memory is the plan's, which has other tensors there later.
  void run() override {
    tracer_.events.clear();
    for (size_t i = 0; i < inputs_.size(); ++i)
      check(method_.set_input(ETensor(inputs_[i].tensor.get()), i), file_);
    check(method_.execute(), file_);
  }

  const void* output(size_t number) const override { return tensor(number).const_data_ptr(); }
  std::vector<Event> events() override { return tracer_.events; }

 private:
  const ETensor& tensor(size_t output) const {
    if (!method_.get_output(output).isTensor())
      fail(file_, "output " + std::to_string(output) + " is no tensor");
    return method_.get_output(output).toTensor();
  }

  std::string file_;
  MmapDataLoader loader_;
  et::Program program_;
  et::MethodMeta meta_;
  Memory memory_;
  et::HierarchicalAllocator planned_;
  MallocMemoryAllocator loaded_, temporary_;
  et::MemoryManager manager_;
  Tracer tracer_;
  et::Method method_;
  std::vector<Input> inputs_;
};

class Executorch final : public Runtime {
 public:
  explicit Executorch(const Job& job) {
    et::runtime_init();
    executorch::extension::threadpool::get_threadpool()->_unsafe_reset_threadpool(job.threads);
    // Kernels and delegates register themselves when they are loaded.
    for (const std::string& library : job.libraries) load_library(library);
  }
  std::unique_ptr<Model> load(const ModelJob& model, bool traced) override {
    if (!model.signature.empty())
      fail(model.file, "got signature '" + model.signature + "', but a .pte has one method");
    return std::unique_ptr<Model>(new ExecutorchModel(model, traced));
  }
};

const RuntimeNamed here("executorch", [](const Job& job) {
  return std::unique_ptr<Runtime>(new Executorch(job));
});

}  // namespace
}  // namespace edgeprune
