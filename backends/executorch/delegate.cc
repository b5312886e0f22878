// The delegate: regions of a .pte, loaded once and run on the runtime's own threads.
#include <executorch/runtime/backend/interface.h>
#include <executorch/runtime/core/event_tracer_hooks_delegate.h>
#include <executorch/runtime/core/exec_aten/util/tensor_util.h>
#include <executorch/runtime/platform/log.h>
#include <stdio.h>
#include <stdlib.h>

#include "../region/region.h"
#include "threads.h"

namespace {

using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::runtime::ArrayRef;
using executorch::runtime::BackendExecutionContext;
using executorch::runtime::BackendInitContext;
using executorch::runtime::CompileSpec;
using executorch::runtime::DelegateHandle;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::FreeableBuffer;
using executorch::runtime::Result;
using executorch::runtime::Span;

using edgeprune::Region;

// A region, and room for the memory of its inputs and outputs while it runs.
struct Loaded {
  Region* region;
  float* tensors[];
};

class Delegate final : public executorch::runtime::BackendInterface {
 public:
  bool is_available() const override { return true; }

  Result<DelegateHandle*> init(BackendInitContext&, FreeableBuffer* bytes,
                               ArrayRef<CompileSpec>) const override {
    const char* why_not = nullptr;
    Region* region = edgeprune::region_load(bytes->data(), bytes->size(),
                                            edgeprune::RuntimeThreads().count(), &why_not);
    bytes->Free();
    if (!region) {
      ET_LOG(Error, "edgeprune: a region cannot be loaded: %s", why_not);
      return Error::DelegateInvalidCompatibility;
    }
    const size_t tensors = region_inputs(*region) + region_outputs(*region);
    void* room = malloc(sizeof(Loaded) + tensors * sizeof(float*));
    if (!room) {
      region_free(region);
      return Error::MemoryAllocationFailed;
    }
    static_cast<Loaded*>(room)->region = region;
    return room;
  }

  Error execute(BackendExecutionContext& context, DelegateHandle* handle,
                Span<EValue*> values) const override {
    Loaded& loaded = *static_cast<Loaded*>(handle);
    const Region& region = *loaded.region;
    const int inputs = region_inputs(region), outputs = region_outputs(region);
    float** tensors = loaded.tensors;
    if (static_cast<int>(values.size()) != inputs + outputs) return Error::InvalidArgument;
    for (int i = 0; i < inputs + outputs; ++i) {
      const int64_t wanted =
          i < inputs ? region_input_size(region, i) : region_output_size(region, i - inputs);
      const bool half =
          i < inputs ? region_input_is_half(region, i) : region_output_is_half(region, i - inputs);
      if (!is_plain(*values[i], wanted, half ? ScalarType::Half : ScalarType::Float)) {
        ET_LOG(Error, "edgeprune: tensor %d has another shape or type than it was lowered for", i);
        return Error::InvalidArgument;
      }
      const void* data = values[i]->toTensor().const_data_ptr();
      tensors[i] = static_cast<float*>(const_cast<void*>(data));
    }
    edgeprune::RuntimeThreads threads;
    auto* tracer = context.event_tracer();
    for (int node = 0; node < region_nodes(region); ++node) {
      // Numbered, because events of one name are averaged.
      char name[32] = "";
      if (tracer) snprintf(name, sizeof name, "%s #%d", region_op(region, node), node);
      const auto event = executorch::runtime::event_tracer_start_profiling_delegate(
          tracer, name, executorch::runtime::kUnsetDelegateDebugIntId);
      if (!region_run(region, node, tensors, tensors + inputs, threads)) return Error::Internal;
      executorch::runtime::event_tracer_end_profiling_delegate(tracer, event);
    }
    return Error::Ok;
  }

  void destroy(DelegateHandle* handle) const override {
    edgeprune::region_free(static_cast<Loaded*>(handle)->region);
    free(handle);
  }

  // There is one, which nobody deletes; the C++ library's operator would have to be linked.
  static void operator delete(void*) {}

 private:
  static bool is_plain(const EValue& value, int64_t size, ScalarType type) {
    if (!value.isTensor()) return false;
    const Tensor& tensor = value.toTensor();
    return tensor.scalar_type() == type && tensor.numel() == size &&
           executorch::runtime::tensor_is_default_dim_order(tensor);
  }
};

Delegate delegate;
// What a runtime without this library says is missing.
const auto registered [[maybe_unused]] = executorch::runtime::register_backend(
    {"EdgepruneDelegate_of_libedgeprune_executorch_so", &delegate});

}  // namespace
