// Regions in their bytes, as edgeprune/lower/region.py writes them; all constants are alike.
#ifndef EDGEPRUNE_TESTS_REGION_WRITER_H
#define EDGEPRUNE_TESTS_REGION_WRITER_H

#include <stdint.h>
#include <string.h>

#include <vector>

#include "region/region.h"

class RegionWriter {
 public:
  // Tensors; each returns its number. Those that are made from here on are of half floats, or not.
  void make(edgeprune::TensorRecord::Type type) { type_ = type; }
  int input(int32_t a, int32_t b, int32_t c, int32_t first = 1) {
    return add(Tensor::kInput, header_.inputs++, {first, a, b, c});
  }
  int output(int32_t a, int32_t b, int32_t c) {
    return add(Tensor::kOutput, header_.outputs++, {1, a, b, c});
  }
  int arena(int32_t a, int32_t b, int32_t c) {
    return add(Tensor::kArena, take(header_.arena_bytes, 4 * a * b * c), {1, a, b, c});
  }

  // Nodes that read and write tensors, with constants of their own; -1: left out.
  void layer_norm(int x, int residual, int out, int sum) {
    const int weight = floats(width(x));
    add({Node::kLayerNorm, {x, residual, weight, weight, out, sum, -1}, {}, 1e-5f});
  }
  void linear(int x, int out, bool with_bias, int32_t activation) {
    const int32_t rows = width(out), columns = width(x);
    const int scales = floats(rows), bias = with_bias ? scales : -1;
    const uint64_t place = take(header_.int8_bytes, rows * columns);
    const int weights = add(Tensor::kInt8s, place, {1, 1, rows, columns});
    add({Node::kLinearInt8, {x, weights, scales, bias, out, -1, -1}, {activation, 0, 0}, 0});
  }
  struct Heads {
    int32_t heads, kv_heads, causal;
  };
  struct Scores {
    int scores, real;
  };
  void attention(int q, int k, int v, int mask, int out, Heads heads, Scores scores = {-1, -1}) {
    add({Node::kAttention,
         {q, k, v, mask, out, scores.scores, scores.real},
         {heads.heads, heads.kv_heads, heads.causal},
         0.5f});
  }
  void token_select(int x, int scores, int pinned, int out, int32_t axis) {
    add({Node::kTokenSelect, {x, scores, pinned, out, -1, -1, -1}, {axis, 0, 0}, 0});
  }

  std::vector<uint8_t> bytes() const {
    RegionHeader header = header_;
    header.tensors = static_cast<uint32_t>(tensors_.size());
    header.nodes = static_cast<uint32_t>(nodes_.size());
    std::vector<uint8_t> all;
    append(all, &header, sizeof header);
    append(all, tensors_.data(), tensors_.size() * sizeof(Tensor));
    append(all, nodes_.data(), nodes_.size() * sizeof(Node));
    const float number = 0.01f;
    for (uint64_t i = 0; i < header.float_bytes; i += 4) append(all, &number, sizeof number);
    all.resize(all.size() + header.int8_bytes, 1);
    return all;
  }

 private:
  using Tensor = edgeprune::TensorRecord;
  using Node = edgeprune::NodeRecord;
  using RegionHeader = edgeprune::RegionHeader;
  struct Dims {
    int32_t size[4];
  };

  static void append(std::vector<uint8_t>& all, const void* from, size_t count) {
    const uint8_t* first = static_cast<const uint8_t*>(from);
    all.insert(all.end(), first, first + count);
  }
  static uint64_t take(uint64_t& from, int32_t bytes) {
    const uint64_t offset = from;
    from += (bytes + 63) / 64 * 64;
    return offset;
  }
  int32_t width(int tensor) const { return tensors_[tensor].dims[3]; }
  int floats(int32_t width) {
    return add(Tensor::kFloats, take(header_.float_bytes, 4 * width), {1, 1, 1, width});
  }
  int add(Tensor::Place place, uint64_t offset, Dims dims) {
    const int32_t* size = dims.size;
    const bool floats = place == Tensor::kFloats || place == Tensor::kInt8s;
    const Tensor::Type type = floats ? Tensor::kFloat32 : type_;
    tensors_.push_back({place, type, {size[0], size[1], size[2], size[3]}, offset});
    return static_cast<int>(tensors_.size()) - 1;
  }
  void add(const Node& node) { nodes_.push_back(node); }

  RegionHeader header_{{'E', 'P', 'R', 'G'}, 2, 0, 0, 0, 0, 0, 0, 0};
  Tensor::Type type_ = Tensor::kFloat32;
  std::vector<Tensor> tensors_;
  std::vector<Node> nodes_;
};

#endif
