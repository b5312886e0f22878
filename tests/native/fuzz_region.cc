// Any bytes are refused as a region, or run inside the tensors that they name.
#include <memory>
#include <vector>

#include "check.h"
#include "region/region.h"

namespace {

using edgeprune::NodeRecord;
using edgeprune::Region;
using edgeprune::RegionHeader;
using edgeprune::TensorRecord;

constexpr uint64_t kMemory = 1 << 22;
constexpr int64_t kElements = 1 << 16;

class InTurn final : public edgeprune::Threads {
 public:
  int count() const override { return 2; }
  bool each(int parts, void (*work)(void* task, int part), void* task) override {
    for (int part = parts - 1; part >= 0; --part) work(task, part);
    return true;
  }
};

// Numbers out of the fuzzer's bytes; 0 when they are used up.
class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), left_(size) {}
  uint8_t byte() { return left_ ? (--left_, *data_++) : 0; }
  int32_t size() { return 1 + byte() % 9; }
  size_t left() const { return left_; }

 private:
  const uint8_t* data_;
  size_t left_;
};

// A region that is in order: a normalised sum, a linear layer that reads it, attention on that.
class Writer {
 public:
  explicit Writer(Bytes& bytes) {
    const int32_t batch = bytes.size(), tokens = bytes.size(), in = bytes.size();
    const int32_t heads = bytes.size(), width = heads * bytes.size();
    const int x = add(TensorRecord::kInput, 0, batch, tokens, in);
    const int weight = add(TensorRecord::kFloats, take(floats_, 4 * in), 1, 1, in);
    const int normed =
        add(TensorRecord::kArena, take(arena_, 4 * batch * tokens * in), batch, tokens, in);
    const int scales = add(TensorRecord::kFloats, take(floats_, 4 * width), 1, 1, width);
    const int matrix = add(TensorRecord::kInt8s, take(int8s_, width * in), 1, width, in);
    const int q =
        add(TensorRecord::kArena, take(arena_, 4 * batch * tokens * width), batch, tokens, width);
    const int mask = add(TensorRecord::kInput, 1, 1, 1, tokens);
    const int out = add(TensorRecord::kOutput, 0, batch, tokens, width);
    const int residual = bytes.byte() % 2 ? x : -1, bias = bytes.byte() % 2 ? scales : -1;
    node({NodeRecord::kLayerNorm, {x, residual, weight, weight, normed, -1}, {}, 1e-5f, 0});
    node({NodeRecord::kLinearInt8,
          {normed, matrix, scales, bias, q, -1},
          {bytes.byte() % 3, 0, 0},
          0,
          0});
    const int32_t causal = bytes.byte() % 2;
    node({NodeRecord::kAttention, {q, q, q, mask, out, -1}, {heads, heads, causal}, 0.5f, 0});
  }

  std::vector<uint8_t> bytes() const {
    const RegionHeader header{{'E', 'P', 'R', 'G'},
                              1,
                              static_cast<uint32_t>(tensors_.size()),
                              static_cast<uint32_t>(nodes_.size()),
                              2,
                              1,
                              arena_,
                              floats_,
                              int8s_};
    std::vector<uint8_t> all;
    append(all, &header, sizeof header);
    append(all, tensors_.data(), tensors_.size() * sizeof(TensorRecord));
    append(all, nodes_.data(), nodes_.size() * sizeof(NodeRecord));
    all.resize(all.size() + floats_ + int8s_, 1);
    return all;
  }

 private:
  static void append(std::vector<uint8_t>& all, const void* from, size_t count) {
    const uint8_t* first = static_cast<const uint8_t*>(from);
    all.insert(all.end(), first, first + count);
  }
  static uint64_t take(uint64_t& from, int32_t bytes) {
    const uint64_t offset = from;
    from += (bytes + 63) / 64 * 64;
    return offset;
  }
  int add(TensorRecord::Place place, uint64_t offset, int32_t a, int32_t b, int32_t c) {
    tensors_.push_back({place, 0, {1, a, b, c}, offset});
    return static_cast<int>(tensors_.size()) - 1;
  }
  void node(const NodeRecord& record) { nodes_.push_back(record); }

  std::vector<TensorRecord> tensors_;
  std::vector<NodeRecord> nodes_;
  uint64_t arena_ = 0, floats_ = 0, int8s_ = 0;
};

using Tensor = std::unique_ptr<Guarded<float>>;

std::vector<Tensor> tensors(const Region& region, int count, int64_t (*size)(const Region&, int)) {
  std::vector<Tensor> made;
  for (int i = 0; i < count; ++i) {
    made.emplace_back(new Guarded<float>(static_cast<size_t>(size(region, i))));
    for (size_t n = 0; n < made.back()->size(); ++n) (*made.back())[n] = 0.5f;
  }
  return made;
}

std::vector<float*> places(const std::vector<Tensor>& tensors) {
  std::vector<float*> found;
  for (const Tensor& tensor : tensors) found.push_back(tensor->data());
  return found;
}

bool is_small(const std::vector<uint8_t>& bytes) {
  RegionHeader header{};
  if (bytes.size() < sizeof header) return true;
  memcpy(&header, bytes.data(), sizeof header);
  return header.arena_bytes <= kMemory;
}

void run(const Region& region) {
  for (int i = 0; i < region_inputs(region); ++i)
    if (region_input_size(region, i) > kElements) return;
  for (int i = 0; i < region_outputs(region); ++i)
    if (region_output_size(region, i) > kElements) return;
  const auto inputs = tensors(region, region_inputs(region), edgeprune::region_input_size);
  const auto outputs = tensors(region, region_outputs(region), edgeprune::region_output_size);
  const auto read = places(inputs), written = places(outputs);
  InTurn threads;
  for (int node = 0; node < region_nodes(region); ++node)
    REQUIRE(region_run(region, node, read.data(), written.data(), threads));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes source(data, size);
  const bool whole = source.byte() % 4 == 0;
  std::vector<uint8_t> bytes(data, data + size);
  if (!whole) {
    bytes = Writer(source).bytes();
    // Up to a few bytes of it changed.
    for (int changes = source.byte() % 4; changes > 0 && source.left(); --changes) {
      const size_t place = (source.byte() << 8 | source.byte()) % bytes.size();
      bytes[place] = source.byte();
    }
    if (source.byte() % 8 == 0) bytes.resize(bytes.size() - source.byte() % 64);
  }
  if (!is_small(bytes)) return 0;
  const char* why_not = nullptr;
  Region* region = edgeprune::region_load(bytes.data(), bytes.size(), 2, &why_not);
  REQUIRE((region == nullptr) == (why_not != nullptr));
  if (region) run(*region);
  edgeprune::region_free(region);
  return 0;
}
