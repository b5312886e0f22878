// Whatever a .pte holds for the ExecuTorch delegate is refused, or runs on the values that it was
// lowered for and on no others. A driver of the interface; real files run in tests/lower.
#include <executorch/runtime/backend/interface.h>
#include <executorch/runtime/platform/runtime.h>

#include "any_region.h"
#include "executorch/threads.h"

// Thousands of refusals are logged: the runtime's own would fill the disk.
extern "C" void et_pal_emit_log_message(et_timestamp_t, et_pal_log_level_t, const char*,
                                        const char*, size_t, const char*, size_t) {}

namespace {

using edgeprune::Region;
using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::aten::TensorImpl;
using executorch::runtime::BackendInterface;
using executorch::runtime::Error;
using executorch::runtime::EValue;

constexpr int64_t kElements = 1 << 16;

BackendInterface& delegate() {
  static BackendInterface* found = [] {
    executorch::runtime::runtime_init();
    return executorch::runtime::get_backend_class(
        "EdgepruneDelegate_of_libedgeprune_executorch_so");
  }();
  REQUIRE(found);
  return *found;
}

// A value of the method: a tensor [numbers, 1] with exactly its memory.
class Value {
 public:
  Value(int64_t numbers, ScalarType type, bool transposed)
      : sizes_{static_cast<int32_t>(numbers), 1},
        order_{transposed, !transposed},
        memory_(type == ScalarType::Half ? (numbers + 1) / 2 : numbers),
        tensor_(type, 2, sizes_, memory_.data(), order_, strides_),
        value_(Tensor(&tensor_)) {
    for (size_t i = 0; i < memory_.size(); ++i) memory_[i] = 0.5f;
  }
  void forbid_writing() { memory_.forbid_writing(); }
  void become_a_number() { value_ = EValue(int64_t{1}); }
  EValue* get() { return &value_; }

 private:
  int32_t sizes_[2];
  uint8_t order_[2];
  int32_t strides_[2] = {1, 1};
  Guarded<float> memory_;
  TensorImpl tensor_;
  EValue value_;
};

struct Call {
  std::vector<std::unique_ptr<Value>> values;
  bool as_lowered = true;

  // Now and then of another size, type or order, or no tensor.
  void add(int64_t numbers, bool half, bool written, Bytes& bytes) {
    ScalarType type = half ? ScalarType::Half : ScalarType::Float;
    const uint8_t wrong = bytes.byte();
    if (wrong == 1) ++numbers;
    if (wrong == 2) type = ScalarType::Int;
    if (wrong == 3) type = half ? ScalarType::Float : ScalarType::Half;
    values.emplace_back(new Value(numbers, type, wrong == 4));
    if (wrong == 5) values.back()->become_a_number();
    if (!written) values.back()->forbid_writing();
    as_lowered &= wrong < 1 || wrong > 5;
  }
};

bool is_small(const Region& region) {
  for (int i = 0; i < region_inputs(region); ++i)
    if (region_input_size(region, i) > kElements) return false;
  for (int i = 0; i < region_outputs(region); ++i)
    if (region_output_size(region, i) > kElements) return false;
  return true;
}

void execute(const Region& region, executorch::runtime::DelegateHandle* handle, Bytes& bytes) {
  Call call;
  for (int i = 0; i < region_inputs(region); ++i)
    call.add(region_input_size(region, i), region_input_is_half(region, i), false, bytes);
  for (int i = 0; i < region_outputs(region); ++i)
    call.add(region_output_size(region, i), region_output_is_half(region, i), true, bytes);
  std::vector<EValue*> values;
  for (const auto& each : call.values) values.push_back(each->get());
  if (bytes.byte() == 1) values.pop_back(), call.as_lowered = false;
  executorch::runtime::BackendExecutionContext context;
  const Error error = delegate().execute(context, handle, {values.data(), values.size()});
  REQUIRE((error == Error::Ok) == call.as_lowered);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::vector<uint8_t> bytes = any_bytes(data, size);
  if (!is_small(bytes)) return 0;
  const char* why_not = nullptr;
  const int threads = edgeprune::RuntimeThreads().count();
  Region* region = edgeprune::region_load(bytes.data(), bytes.size(), threads, &why_not);
  executorch::runtime::BackendInitContext context(nullptr);
  executorch::runtime::FreeableBuffer processed(bytes.data(), bytes.size(), nullptr);
  const auto handle = delegate().init(context, &processed, {});
  REQUIRE(handle.ok() == (region != nullptr));
  if (region) {
    Bytes changes(data + size / 2, size - size / 2);
    if (is_small(*region)) execute(*region, handle.get(), changes);
    delegate().destroy(handle.get());
  }
  edgeprune::region_free(region);
  return 0;
}
