// Any bytes are refused as a region, or run inside the tensors that they name.
#include "any_region.h"

namespace {

using edgeprune::Region;

constexpr int64_t kElements = 1 << 16;

class InTurn final : public edgeprune::Threads {
 public:
  int count() const override { return 2; }
  bool each(int parts, void (*work)(void* task, int part), void* task) override {
    for (int part = parts - 1; part >= 0; --part) work(task, part);
    return true;
  }
};

using Tensor = std::unique_ptr<Guarded<float>>;

std::vector<Tensor> tensors(const Region& region, int count, int64_t (*size)(const Region&, int),
                            bool (*is_half)(const Region&, int)) {
  std::vector<Tensor> made;
  for (int i = 0; i < count; ++i) {
    const int64_t numbers = size(region, i);
    made.emplace_back(new Guarded<float>(is_half(region, i) ? (numbers + 1) / 2 : numbers));
    for (size_t n = 0; n < made.back()->size(); ++n) (*made.back())[n] = 0.5f;
  }
  return made;
}

std::vector<float*> places(const std::vector<Tensor>& tensors) {
  std::vector<float*> found;
  for (const Tensor& tensor : tensors) found.push_back(tensor->data());
  return found;
}

void run(const Region& region) {
  for (int i = 0; i < region_inputs(region); ++i)
    if (region_input_size(region, i) > kElements) return;
  for (int i = 0; i < region_outputs(region); ++i)
    if (region_output_size(region, i) > kElements) return;
  const auto inputs = tensors(region, region_inputs(region), edgeprune::region_input_size,
                              edgeprune::region_input_is_half);
  const auto outputs = tensors(region, region_outputs(region), edgeprune::region_output_size,
                               edgeprune::region_output_is_half);
  for (const Tensor& input : inputs) input->forbid_writing();
  const auto read = places(inputs), written = places(outputs);
  InTurn threads;
  for (int node = 0; node < region_nodes(region); ++node)
    REQUIRE(region_run(region, node, read.data(), written.data(), threads));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const int threads = size > 1 ? 1 + data[1] % 9 : 1;
  const std::vector<uint8_t> bytes = any_bytes(data, size);
  if (!is_small(bytes)) return 0;
  const char* why_not = nullptr;
  Region* region = edgeprune::region_load(bytes.data(), bytes.size(), threads, &why_not);
  REQUIRE((region == nullptr) == (why_not != nullptr));
  if (region) run(*region);
  edgeprune::region_free(region);
  return 0;
}
