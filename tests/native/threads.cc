// Regions and calls of the LiteRT delegate on threads, for ThreadSanitizer: one shared by several,
// and several at once. Whatever thread runs what, the numbers are the same.
#include <memory>
#include <thread>

#include "check.h"
#include "litert/share.h"
#include "region_writer.h"

namespace {

constexpr int kThreads = 2, kBatch = 2, kTokens = 40, kWidth = 64;
constexpr size_t kNumbers = kBatch * kTokens * kWidth;
// Few enough, and enough, for the keys to be split.
constexpr int kQueries = 3, kKeys = 600;

template <class Run>
void on_each_thread(int count, Run run) {
  std::vector<std::thread> threads;
  for (int t = 1; t < count; ++t) threads.emplace_back(run, t);
  run(0);
  for (std::thread& thread : threads) thread.join();
}

class Started final : public edgeprune::Threads {
 public:
  explicit Started(int count) : count_(count) {}
  int count() const override { return count_; }
  bool each(int parts, void (*work)(void* task, int part), void* task) override {
    on_each_thread(parts, [=](int part) { work(task, part); });
    return true;
  }

 private:
  int count_;
};

std::vector<float> random_numbers(size_t count = kNumbers) {
  Random random(1);
  std::vector<float> made(count);
  for (float& number : made) number = random.normal();
  return made;
}

// Normalised, projected by two layers that share its rows, attended to; few queries of many keys.
std::vector<uint8_t> region_bytes() {
  RegionWriter region;
  const auto rows = [&] { return region.arena(kBatch, kTokens, kWidth); };
  const int x = region.input(kBatch, kTokens, kWidth), normed = rows(), q = rows(), k = rows();
  const int sum = region.output(kBatch, kTokens, kWidth);
  region.layer_norm(x, x, normed, sum);
  region.linear(normed, q, true, EP_GELU);
  region.linear(normed, k, false, EP_NO_ACTIVATION);
  region.attention(q, k, normed, -1, region.output(kBatch, kTokens, kWidth), {4, 4, 1},
                   {region.arena(1, kBatch, kTokens), -1});
  const int few = region.input(1, kQueries, kWidth), many = region.input(1, kKeys, kWidth);
  region.attention(few, many, many, -1, region.output(1, kQueries, kWidth), {1, 1, 0});
  return region.bytes();
}

std::vector<float> outputs_of(const std::vector<uint8_t>& bytes, int threads) {
  const char* why_not = nullptr;
  edgeprune::Region* region =
      edgeprune::region_load(bytes.data(), bytes.size(), kThreads, &why_not);
  REQUIRE(region);
  const std::vector<float> x = random_numbers(kKeys * kWidth);
  std::vector<float> all(2 * kNumbers + kQueries * kWidth);
  const float* inputs[] = {x.data(), x.data(), x.data()};
  float* outputs[] = {all.data(), all.data() + kNumbers, all.data() + 2 * kNumbers};
  Started pool(threads);
  for (int node = 0; node < region_nodes(*region); ++node)
    REQUIRE(region_run(*region, node, inputs, outputs, pool));
  edgeprune::region_free(region);
  return all;
}

// Reads what no node has written, in memory that held something else.
void check_unwritten() {
  RegionWriter region;
  region.layer_norm(region.arena(1, kTokens, kWidth), -1, region.output(1, kTokens, kWidth), -1);
  const std::vector<uint8_t> bytes = region.bytes();
  for (size_t size = 64; size < sizeof(float) * kNumbers; size += 64) {
    void* used = aligned_alloc(64, size);
    memset(used, 0x7f, size);
    free(used);
  }
  const char* why_not = nullptr;
  edgeprune::Region* loaded = edgeprune::region_load(bytes.data(), bytes.size(), 1, &why_not);
  std::vector<float> out(kTokens * kWidth);
  float* outputs[] = {out.data()};
  Started pool(1);
  REQUIRE(loaded && region_run(*loaded, 0, nullptr, outputs, pool));
  // Rows of zeros become the bias.
  for (float number : out) REQUIRE(number == 0.01f);
  edgeprune::region_free(loaded);
}

void check_regions() {
  const std::vector<uint8_t> bytes = region_bytes();
  const std::vector<float> alone = outputs_of(bytes, 1);
  REQUIRE(outputs_of(bytes, kThreads) == alone);
  on_each_thread(kThreads, [&](int) { REQUIRE(outputs_of(bytes, kThreads) == alone); });
}

// A call whose tensors are those of a LiteRT file.
class LitertCall {
 public:
  LitertCall() {
    for (float& scale : scales_.data) scale = 0.01f;
  }
  // Tensors of float32 or, where ``weights`` says so, int8.
  TfLiteTensor* tensor(std::vector<int> dims, bool weights = false) {
    Held& held = *held_.emplace(held_.end(), new Held)->get();
    held.dims.assign(1, static_cast<int>(dims.size()));
    held.dims.insert(held.dims.end(), dims.begin(), dims.end());
    held.memory = random_numbers();
    held.tensor.type = weights ? kTfLiteInt8 : kTfLiteFloat32;
    held.tensor.dims = reinterpret_cast<TfLiteIntArray*>(held.dims.data());
    held.tensor.allocation_type = kTfLiteMmapRo;
    held.tensor.data = held.memory.data();
    held.tensor.bytes = kNumbers * sizeof(float);
    if (weights) held.tensor.quantization = {kTfLiteAffineQuantization, &quantised_};
    return &held.tensor;
  }

 private:
  struct Held {
    TfLiteTensor tensor{};
    std::vector<int> dims;
    std::vector<float> memory;
  };
  std::vector<std::unique_ptr<Held>> held_;
  struct {
    int size = kWidth;
    float data[kWidth];
  } scales_;
  TfLiteAffineQuantization quantised_{reinterpret_cast<TfLiteFloatArray*>(&scales_), nullptr, 0};
};

// One for all calls: two at once must not both have it.
Pool pool;

std::vector<float> output_of(const Op& op, const Attributes& attributes, LitertCall& made,
                             std::vector<TfLiteTensor*> inputs, int threads, int outputs = 1) {
  Tensors tensors{};
  for (TfLiteTensor* input : inputs) tensors.inputs[tensors.input_count++] = input;
  const TfLiteTensor* out = made.tensor({kBatch, kTokens, kWidth});
  tensors.outputs[0] = out, tensors.outputs[1] = made.tensor({kBatch, kTokens});
  tensors.output_count = outputs;
  Call call{};
  REQUIRE(!op.call(attributes, tensors, threads, &call));
  std::vector<float> packed(op.packed_bytes ? op.packed_bytes(call) / sizeof(float) : 0);
  if (op.pack) op.pack(call, tensors, packed.data());
  tensors.packed = packed.data();
  REQUIRE(!op.call(attributes, tensors, threads, &call));
  std::vector<float> workspace(workspace_bytes(call, threads) / sizeof(float));
  run_shared(op, call, threads, workspace.data(), &pool);
  const float* numbers = static_cast<const float*>(out->data);
  return {numbers, numbers + kNumbers};
}

std::vector<float> attention(int threads) {
  LitertCall made;
  const auto rows = [&] { return made.tensor({kBatch, kTokens, kWidth}); };
  return output_of(kSlimAttention, {{4, 4, 0.5, 0}}, made, {rows(), rows(), rows()}, threads);
}

std::vector<float> scored(int threads) {
  LitertCall made;
  const auto rows = [&] { return made.tensor({kBatch, kTokens, kWidth}); };
  return output_of(kSlimAttentionScores, {{4, 4, 0.5, 0}}, made, {rows(), rows(), rows()}, threads,
                   2);
}

std::vector<float> linear(int threads) {
  // The delegate leaves them to XNNPACK elsewhere.
  if (strcmp(ep_linear_kernel(nullptr)->name, "avx512vnni")) return std::vector<float>(kNumbers);
  LitertCall made;
  const std::vector<TfLiteTensor*> inputs = {made.tensor({kBatch, kTokens, kWidth}),
                                             made.tensor({kWidth, kWidth}, true),
                                             made.tensor({kWidth})};
  return output_of(kFullyConnected, {{EP_RELU, 1, 0}}, made, inputs, threads);
}

std::vector<float> layer_norm(int threads) {
  LitertCall made;
  const std::vector<TfLiteTensor*> inputs = {made.tensor({kBatch, kTokens, kWidth}),
                                             made.tensor({kWidth}), made.tensor({kWidth})};
  return output_of(kLayerNorm, {{1e-5}}, made, inputs, threads);
}

void check_litert() {
  for (auto run : {attention, scored, linear, layer_norm}) {
    const std::vector<float> alone = run(1);
    for (int threads : {kThreads, 2 * kThreads, kThreads})
      on_each_thread(kThreads, [&](int) {
        const std::vector<float> shared = run(threads);
        for (size_t i = 0; i < kNumbers; ++i) REQUIRE(fabsf(shared[i] - alone[i]) < 1e-4f);
      });
  }
  end_threads(&pool);
}

}  // namespace

int main() {
  check_regions();
  check_unwritten();
  check_litert();
  printf("no races\n");
}
