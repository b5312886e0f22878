// Regions for fuzz harnesses: in order, damaged, or no region at all.
#ifndef EDGEPRUNE_TESTS_ANY_REGION_H
#define EDGEPRUNE_TESTS_ANY_REGION_H

#include <vector>

#include "bytes.h"
#include "region_writer.h"

using edgeprune::RegionHeader;
using edgeprune::TensorRecord;

constexpr uint64_t kMemory = 1 << 22;

// A region that is in order: some nodes of any kind, each reading inputs, constants and what nodes
// before it wrote, and writing to the arena or to an output.
class AnyRegion {
 public:
  explicit AnyRegion(Bytes& bytes)
      : bytes_(bytes),
        batch_(bytes.few()),
        type_(bytes.one_in(3) ? TensorRecord::kFloat16 : TensorRecord::kFloat32) {
    region_.make(type_);
    const int32_t tokens = bytes.few(), heads = bytes.few(), width = heads * bytes.few();
    rows_.push_back({region_.input(batch_, tokens, width), tokens, width});
    for (int count = bytes.few(); count > 0; --count) {
      const int kind = bytes.byte() % 4;
      const bool linears = type_ == TensorRecord::kFloat32;
      kind == 0              ? layer_norm()
      : kind == 1            ? select()
      : kind == 2 && linears ? linear()
                             : attention(heads);
    }
    // Whatever was drawn, an output is written.
    region_.layer_norm(0, -1, region_.output(batch_, tokens, width), -1);
  }
  std::vector<uint8_t> bytes() const { return region_.bytes(); }

 private:
  struct Rows {
    int tensor;
    int32_t tokens, width;
  };

  // Read by nodes to come, also where it is an output.
  int written(int32_t tokens, int32_t width) {
    const int tensor = bytes_.one_in(4) ? region_.output(batch_, tokens, width)
                                        : region_.arena(batch_, tokens, width);
    rows_.push_back({tensor, tokens, width});
    return tensor;
  }
  Rows any() { return rows_[bytes_.byte() % rows_.size()]; }
  // One of that shape, perhaps the same, or a new input.
  int like(Rows wanted) {
    const Rows found = any();
    if (found.tokens == wanted.tokens && found.width == wanted.width) return found.tensor;
    return bytes_.one_in(2) ? wanted.tensor : region_.input(batch_, wanted.tokens, wanted.width);
  }

  void layer_norm() {
    const Rows x = any();
    const int residual = bytes_.one_in(2) ? like(x) : -1;
    const int sum = bytes_.one_in(2) ? written(x.tokens, x.width) : -1;
    const bool in_place = bytes_.one_in(4) && x.tensor != rows_[0].tensor;
    region_.layer_norm(x.tensor, residual, in_place ? x.tensor : written(x.tokens, x.width), sum);
  }

  // Up to three that read the same, which is quantised once.
  void linear() {
    const Rows x = any();
    for (int count = 1 + bytes_.byte() % 3; count > 0; --count) {
      const int32_t out = bytes_.few() * bytes_.few();
      region_.linear(x.tensor, written(x.tokens, out), bytes_.one_in(2), bytes_.byte() % 3);
    }
  }

  void attention(int32_t heads) {
    const Rows q = any(), k = any();
    if (q.width % heads) return;
    const int32_t dim = q.width / heads, kv_heads = k.width / dim;
    if (k.width % dim || kv_heads < 1 || heads % kv_heads) return;
    const auto some = [&](int32_t whole) { return bytes_.one_in(2) ? 1 : whole; };
    region_.make(TensorRecord::kFloat32);
    const int mask =
        bytes_.one_in(2) ? region_.input(some(heads), some(q.tokens), k.tokens, some(batch_)) : -1;
    RegionWriter::Scores scores{-1, -1};
    if (q.tokens == k.tokens && bytes_.one_in(2)) {
      scores.scores = region_.arena(1, batch_, k.tokens);
      if (bytes_.one_in(2)) scores.real = region_.input(1, batch_, k.tokens);
    }
    region_.make(type_);
    const int v = like(k), out = written(q.tokens, q.width);
    region_.attention(q.tensor, k.tensor, v, mask, out, {heads, kv_heads, bytes_.byte() % 2},
                      scores);
  }

  void select() {
    const Rows x = any();
    const bool of_tokens = bytes_.one_in(2);
    const int32_t size = of_tokens ? x.tokens : x.width, keep = 1 + bytes_.byte() % size;
    region_.make(TensorRecord::kFloat32);
    const int scores = region_.input(1, 1, size);
    const int pinned = bytes_.one_in(2) ? region_.input(1, 1, size) : -1;
    region_.make(type_);
    const int out = of_tokens ? written(keep, x.width) : written(x.tokens, keep);
    region_.token_select(x.tensor, scores, pinned, out, of_tokens ? 2 : 3);
  }

  Bytes& bytes_;
  RegionWriter region_;
  const int32_t batch_;
  const TensorRecord::Type type_;
  std::vector<Rows> rows_;
};

// Changes a byte, or a number of the header, the tensors or the nodes to one that may be too large.
inline void damage(std::vector<uint8_t>& bytes, Bytes& source) {
  size_t place = (source.byte() << 8 | source.byte()) % bytes.size();
  if (source.one_in(2)) {
    bytes[place] = source.byte();
  } else if (place / 4 * 4 + 4 <= bytes.size()) {
    const int32_t number = source.size();
    memcpy(&bytes[place / 4 * 4], &number, sizeof number);
  }
}

inline bool is_small(const std::vector<uint8_t>& bytes) {
  RegionHeader header{};
  if (bytes.size() < sizeof header) return true;
  memcpy(&header, bytes.data(), sizeof header);
  return header.arena_bytes <= kMemory;
}

// What a file may hold for us, by the fuzzer's bytes.
inline std::vector<uint8_t> any_bytes(const uint8_t* data, size_t size) {
  // What is done to a region comes first: what it is may use up all bytes.
  const size_t first = size < 16 ? size : 16;
  Bytes changes(data, first), source(data + first, size - first);
  std::vector<uint8_t> bytes(data, data + size);
  const uint8_t kind = changes.byte();
  if (kind % 8) {
    bytes = AnyRegion(source).bytes();
    for (int count = kind / 8 % 4; count > 0 && changes.left(); --count) damage(bytes, changes);
    if (kind / 32 == 0) bytes.resize(bytes.size() - changes.byte() % 64);
  }
  return bytes;
}

#endif
