#include "region.h"

#include <stdlib.h>
#include <string.h>

#include <initializer_list>

#include "../kernels/layer_norm.h"
#include "../kernels/linear_int8.h"
#include "../kernels/slim_attention.h"
#include "../kernels/tokens.h"

namespace edgeprune {

// What was read, and what running needs.
struct Region {
  RegionHeader header;
  TensorRecord* tensors;
  NodeRecord* nodes;
  const EpAttentionKernel* attention;
  const EpNormKernel* norm;
  const EpLinearKernel* linear;
  int64_t* sizes;             // elements of the inputs, then of the outputs
  uint32_t *types, *packers;  // and what they are; of each node, the one whose weights it reads
  unsigned char *floats, *arena, *quantised, *workspaces, **packed;  // packed: one a node
  unsigned char *parts, *received;  // of attention: of its keys, and of what tokens receive
  size_t workspace_bytes;           // of one thread
  int threads;
};

namespace {

constexpr uint32_t kVersion = 2;
constexpr uint64_t kMost = uint64_t{1} << 31;  // anything that is counted is below it
constexpr size_t kLine = 64;

uint64_t rounded(uint64_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

int64_t size_of(const TensorRecord& t) {
  return int64_t{t.dims[0]} * t.dims[1] * t.dims[2] * t.dims[3];
}
int32_t rows_of(const TensorRecord& t) { return static_cast<int32_t>(size_of(t) / t.dims[3]); }

bool same_dims(const TensorRecord& a, const TensorRecord& b) {
  return !memcmp(a.dims, b.dims, sizeof a.dims);
}
bool is_alike(const TensorRecord& a, const TensorRecord& b) {
  return same_dims(a, b) && a.type == b.type;
}
bool is_half(const TensorRecord& t) { return t.type == TensorRecord::kFloat16; }

const TensorRecord* operand(const Region& r, const NodeRecord& node, int place) {
  const int32_t number = node.operands[place];
  return number < 0 ? nullptr : r.tensors + number;
}

// Whether a node may read this as floats, half or not, or write to it.
bool is_read(const TensorRecord* t) { return t && t->place != TensorRecord::kInt8s; }
bool is_float32(const TensorRecord* t) { return is_read(t) && !is_half(*t); }
bool is_written(const TensorRecord* t) {
  return t && (t->place == TensorRecord::kOutput || t->place == TensorRecord::kArena);
}
bool is_vector(const TensorRecord* t, int32_t size) {
  return is_float32(t) && t->dims[3] == size && rows_of(*t) == 1;
}

// A node with its operands' memory, while it runs.
struct Operands {
  const Region& region;
  const NodeRecord& node;
  const float* const* inputs;
  float* const* outputs;

  float* at(int place) const {
    const TensorRecord* t = operand(region, node, place);
    if (!t) return nullptr;
    switch (t->place) {
      case TensorRecord::kInput:
        return const_cast<float*>(inputs[t->offset]);
      case TensorRecord::kOutput:
        return outputs[t->offset];
      case TensorRecord::kArena:
        return reinterpret_cast<float*>(region.arena + t->offset);
      default:
        return reinterpret_cast<float*>(region.floats + t->offset);
    }
  }
};

// ---- attention

EpAttention attention_of(const Region& r, const NodeRecord& node) {
  const TensorRecord &q = *operand(r, node, 0), &k = *operand(r, node, 1);
  EpAttention call{};
  call.batch = q.dims[1], call.queries = q.dims[2], call.keys = k.dims[2];
  call.heads = node.whole[0], call.kv_heads = node.whole[1], call.causal = node.whole[2];
  call.head_dim = call.heads > 0 ? q.dims[3] / call.heads : 0;
  call.scale = node.real;
  call.threads = r.threads;
  call.type = is_half(q) ? EP_FLOAT16 : EP_FLOAT32;
  return call;
}

// Scores are of tokens that read each other.
const char* check_scores(const Region& r, const NodeRecord& node, const EpAttention& call) {
  const TensorRecord *scores = operand(r, node, 5), *real = operand(r, node, 6);
  if (!scores) return real ? "attention: real tokens, but no scores" : nullptr;
  const int64_t tokens = int64_t{call.batch} * call.keys;
  if (call.queries != call.keys || !is_written(scores) || is_half(*scores) ||
      size_of(*scores) != tokens)
    return "attention: wrong scores";
  if (real && (!is_float32(real) || size_of(*real) != tokens))
    return "attention: wrong real tokens";
  return nullptr;
}

const char* check_attention(const Region& r, const NodeRecord& node) {
  const TensorRecord *q = operand(r, node, 0), *k = operand(r, node, 1), *v = operand(r, node, 2);
  const TensorRecord *mask = operand(r, node, 3), *out = operand(r, node, 4);
  if (!is_read(q) || !is_read(k) || !is_read(v) || !is_written(out))
    return "attention: an operand is missing";
  if (q->dims[0] != 1 || k->dims[0] != 1 || !is_alike(*q, *out) || !is_alike(*k, *v) ||
      q->type != k->type)
    return "attention: wrong dimensions or types";
  const EpAttention call = attention_of(r, node);
  if (const char* reason = ep_attention_refuses(&call)) return reason;
  if (q->dims[3] != call.heads * call.head_dim || k->dims[3] != call.kv_heads * call.head_dim ||
      k->dims[1] != call.batch)
    return "attention: heads and widths do not agree";
  EpAttention masked = call;
  if (mask && !(is_float32(mask) && ep_attention_set_mask(&masked, nullptr, mask->dims)))
    return "attention: a wrong mask";
  return check_scores(r, node, call);
}

bool run_attention(const Region& r, const Operands& at, Threads& threads) {
  EpAttention call = attention_of(r, at.node);
  call.q = at.at(0), call.k = at.at(1), call.v = at.at(2), call.out = at.at(4);
  if (const TensorRecord* mask = operand(r, at.node, 3))
    ep_attention_set_mask(&call, at.at(3), mask->dims);
  const int32_t keys = ep_attention_real_keys(&call);
  if (call.batch == 1) call.lengths = &keys;
  float *scores = at.at(5), *real = at.at(6);
  call.query_weights = real;
  if (scores) call.received = reinterpret_cast<float*>(r.received);
  call.parts = reinterpret_cast<float*>(r.parts);
  const EpAttentionKernel& kernel = *r.attention;
  const int32_t steps = kernel.steps(&call);
  const auto run = [&](int part, int first, int last) {
    kernel.run(&call, first, last, r.workspaces + part * r.workspace_bytes);
  };
  if (!share(threads, r.threads, steps, run)) return false;
  kernel.merge(&call);
  if (scores) ep_token_scores(&call, steps, real, scores);
  return true;
}

// ---- layer norm

const char* check_norm(const Region& r, const NodeRecord& node) {
  const TensorRecord *x = operand(r, node, 0), *residual = operand(r, node, 1);
  const TensorRecord *out = operand(r, node, 4), *sum = operand(r, node, 5);
  if (!is_read(x) || !is_written(out) || !is_alike(*x, *out))
    return "layer norm: an operand is missing or wrong";
  if (residual && (!is_read(residual) || !is_alike(*x, *residual)))
    return "layer norm: a wrong residual";
  if (sum && (!is_written(sum) || !is_alike(*x, *sum))) return "layer norm: a wrong sum";
  for (int place : {2, 3})
    if (!is_vector(operand(r, node, place), x->dims[3])) return "layer norm: wrong weights";
  EpNorm call{};
  call.rows = rows_of(*x), call.width = x->dims[3], call.eps = node.real;
  return ep_norm_refuses(&call);
}

bool run_norm(const Region& r, const Operands& at, Threads& threads) {
  const TensorRecord& x = *operand(r, at.node, 0);
  const int32_t type = is_half(x) ? EP_FLOAT16 : EP_FLOAT32;
  const EpNorm call{rows_of(x), x.dims[3], type,     at.node.real, at.at(0),
                    at.at(1),   at.at(2),  at.at(3), at.at(5),     at.at(4)};
  return share(threads, r.threads, call.rows,
               [&](int, int first, int last) { r.norm->run(&call, first, last); });
}

// ---- linear, int8

EpLinear linear_of(const Region& r, const NodeRecord& node) {
  const TensorRecord &x = *operand(r, node, 0), &out = *operand(r, node, 4);
  EpLinear call{};
  call.rows = rows_of(x), call.in = x.dims[3], call.out = out.dims[3];
  call.activation = node.whole[0], call.threads = r.threads;
  return call;
}

const char* check_linear(const Region& r, const NodeRecord& node) {
  const TensorRecord *x = operand(r, node, 0), *weight = operand(r, node, 1);
  const TensorRecord *scales = operand(r, node, 2), *bias = operand(r, node, 3);
  const TensorRecord* out = operand(r, node, 4);
  if (!is_float32(x) || !weight || weight->place != TensorRecord::kInt8s || !is_written(out) ||
      is_half(*out))
    return "linear: an operand is missing or wrong";
  const EpLinear call = linear_of(r, node);
  if (weight->dims[3] != call.in || rows_of(*weight) != call.out || rows_of(*out) != call.rows)
    return "linear: wrong dimensions";
  // Packed while loading: they must be constants.
  for (const TensorRecord* vector : {scales, bias})
    if (vector && (vector->place != TensorRecord::kFloats || !is_vector(vector, call.out)))
      return "linear: wrong scales or bias";
  return scales ? ep_linear_refuses(&call) : "linear: no scales";
}

bool run_linear(const Region& r, const Operands& at, Threads& threads) {
  EpLinear call = linear_of(r, at.node);
  const EpLinearKernel& kernel = *r.linear;
  // Neighbours that read the same rows, such as the q, k and v projections, quantise them once.
  const NodeRecord* before = &at.node - 1;
  const bool shared = before >= r.nodes && before->op == NodeRecord::kLinearInt8 &&
                      before->operands[0] == at.node.operands[0] &&
                      before->operands[4] != at.node.operands[0];
  if (!shared && !share(threads, r.threads, call.rows, [&](int, int first, int last) {
        kernel.quantise(at.at(0), call.rows, call.in, first, last, r.quantised);
      }))
    return false;
  call.quantised = r.quantised, call.packed = r.packed[r.packers[&at.node - r.nodes]],
  call.y = at.at(4);
  return share(threads, r.threads, kernel.steps(&call),
               [&](int, int first, int last) { kernel.run(&call, first, last); });
}

// ---- token selection

EpTokenSelect select_of(const Region& r, const NodeRecord& node) {
  const TensorRecord &x = *operand(r, node, 0), &out = *operand(r, node, 3);
  const int axis = node.whole[0];
  EpTokenSelect call{};
  call.outer = 1, call.tokens = x.dims[axis], call.inner = 1, call.keep = out.dims[axis];
  call.type = is_half(x) ? EP_FLOAT16 : EP_FLOAT32;
  for (int i = 0; i < axis; ++i) call.outer *= x.dims[i];
  for (int i = axis + 1; i < 4; ++i) call.inner *= x.dims[i];
  return call;
}

const char* check_select(const Region& r, const NodeRecord& node) {
  const TensorRecord *x = operand(r, node, 0), *scores = operand(r, node, 1);
  const TensorRecord *pinned = operand(r, node, 2), *out = operand(r, node, 3);
  const int axis = node.whole[0];
  if (!is_read(x) || !is_read(scores) || !is_written(out))
    return "selection: an operand is missing";
  if (axis < 0 || axis > 3) return "selection: an unknown dimension";
  if (x->type != out->type) return "selection: wrong types";
  for (int i = 0; i < 4; ++i)
    if (i != axis && x->dims[i] != out->dims[i]) return "selection: wrong dimensions";
  for (const TensorRecord* vector : {scores, pinned})
    if (vector && !is_vector(vector, x->dims[axis])) return "selection: wrong scores";
  const EpTokenSelect call = select_of(r, node);
  return ep_token_select_refuses(&call);
}

bool run_select(const Region& r, const Operands& at, Threads&) {
  EpTokenSelect call = select_of(r, at.node);
  call.x = at.at(0), call.scores = at.at(1), call.pinned = at.at(2), call.out = at.at(3);
  ep_token_select(&call);
  return true;
}

// ---- loading

struct Op {
  const char* name;
  const char* (*check)(const Region&, const NodeRecord&);
  bool (*run)(const Region&, const Operands&, Threads&);
};

const Op* op_of(uint32_t number) {
  static const Op ops[] = {{"slim_attention", check_attention, run_attention},
                           {"layer_norm", check_norm, run_norm},
                           {"linear_int8", check_linear, run_linear},
                           {"token_select", check_select, run_select}};
  return number >= 1 && number <= sizeof ops / sizeof *ops ? ops + number - 1 : nullptr;
}

const char* check_header(const RegionHeader& h, size_t count) {
  if (memcmp(h.magic, "EPRG", 4)) return "not a region";
  if (h.version != kVersion) return "made by another version of edgeprune";
  const uint64_t numbers[] = {h.tensors,     h.nodes,       h.inputs,    h.outputs,
                              h.arena_bytes, h.float_bytes, h.int8_bytes};
  for (uint64_t number : numbers)
    if (number >= kMost) return "a size is out of bounds";
  if (count != sizeof h + h.tensors * sizeof(TensorRecord) + h.nodes * sizeof(NodeRecord) +
                   h.float_bytes + h.int8_bytes)
    return "cut short, or too long";
  return h.inputs <= h.tensors && h.outputs <= h.tensors ? nullptr : "inputs that are no tensors";
}

const char* check_tensor(Region& r, const TensorRecord& t) {
  uint64_t size = 1;
  for (int32_t dim : t.dims) {
    if (dim < 1) return "a tensor without elements";
    if ((size *= static_cast<uint64_t>(dim)) > kMost / sizeof(float)) return "a tensor too large";
  }
  if (t.type > TensorRecord::kFloat16) return "a tensor of an unknown type";
  const RegionHeader& h = r.header;
  if (t.place == TensorRecord::kInput || t.place == TensorRecord::kOutput) {
    const bool is_input = t.place == TensorRecord::kInput;
    if (t.offset >= (is_input ? h.inputs : h.outputs)) return "an input or output out of bounds";
    const uint64_t number = t.offset + (is_input ? 0 : h.inputs);
    int64_t& known = r.sizes[number];
    if (known && (known != size_of(t) || r.types[number] != t.type))
      return "an input or output of two sizes or types";
    known = size_of(t);
    r.types[number] = t.type;
    return nullptr;
  }
  const uint64_t bounds[] = {h.arena_bytes, h.float_bytes, h.int8_bytes};
  if (t.place > TensorRecord::kInt8s) return "a tensor of an unknown kind";
  const uint64_t bound = bounds[t.place - TensorRecord::kArena];
  const uint64_t item = t.place == TensorRecord::kInt8s ? 1 : is_half(t) ? 2 : sizeof(float);
  const bool inside = t.offset <= bound && size * item <= bound - t.offset;
  return inside && t.offset % item == 0 ? nullptr : "a tensor out of bounds";
}

const char* check_nodes(const Region& r) {
  for (uint32_t n = 0; n < r.header.nodes; ++n) {
    const NodeRecord& node = r.nodes[n];
    for (int32_t number : node.operands)
      if (number >= static_cast<int64_t>(r.header.tensors)) return "an operand that does not exist";
    const Op* op = op_of(node.op);
    if (!op) return "an unknown operator";
    if (const char* reason = op->check(r, node)) return reason;
  }
  return nullptr;
}

unsigned char* take(uint64_t bytes) {
  void* memory = nullptr;
  return posix_memalign(&memory, kLine, rounded(bytes ? bytes : 1))
             ? nullptr
             : static_cast<unsigned char*>(memory);
}

const char* read(Region& r, const unsigned char* bytes, size_t count) {
  if (count < sizeof r.header) return "cut short";
  memcpy(&r.header, bytes, sizeof r.header);
  const RegionHeader& h = r.header;
  if (const char* reason = check_header(h, count)) return reason;
  const size_t tensors = h.tensors * sizeof(TensorRecord), nodes = h.nodes * sizeof(NodeRecord);
  r.tensors = reinterpret_cast<TensorRecord*>(take(tensors));
  r.nodes = reinterpret_cast<NodeRecord*>(take(nodes));
  r.floats = take(h.float_bytes);
  r.sizes = static_cast<int64_t*>(calloc(h.inputs + h.outputs + 1, sizeof(int64_t)));
  r.types = static_cast<uint32_t*>(calloc(h.inputs + h.outputs + 1, sizeof(uint32_t)));
  r.packed = static_cast<unsigned char**>(calloc(h.nodes + 1, sizeof(unsigned char*)));
  r.packers = static_cast<uint32_t*>(calloc(h.nodes + 1, sizeof(uint32_t)));
  if (!r.packers) return "out of memory";
  if (!r.tensors || !r.nodes || !r.floats || !r.sizes || !r.types || !r.packed)
    return "out of memory";
  bytes += sizeof h;
  memcpy(r.tensors, bytes, tensors);
  memcpy(r.nodes, bytes + tensors, nodes);
  memcpy(r.floats, bytes + tensors + nodes, h.float_bytes);
  for (uint32_t t = 0; t < h.tensors; ++t)
    if (const char* reason = check_tensor(r, r.tensors[t])) return reason;
  for (uint32_t n = 0; n < h.inputs + h.outputs; ++n)
    if (!r.sizes[n]) return "an input or output that is no tensor";
  return check_nodes(r);
}

// The first node that names the same weights, scales and bias as node ``n``, which packs them;
// ``first`` has, of each tensor, the number after that of the first node whose weights it is.
uint32_t packer_of(const Region& r, uint32_t n, uint32_t* first) {
  const int32_t* mine = r.nodes[n].operands;
  uint32_t& known = first[mine[1]];
  if (!known) known = n + 1;
  const int32_t* others = r.nodes[known - 1].operands;
  return others[2] == mine[2] && others[3] == mine[3] ? known - 1 : n;
}

bool pack(Region& r, uint32_t n, const unsigned char* weights) {
  const NodeRecord& node = r.nodes[n];
  const EpLinear call = linear_of(r, node);
  r.packed[n] = take(r.linear->packed_bytes(call.in, call.out));
  if (!r.packed[n]) return false;
  const auto constant = [&](int place) {
    const TensorRecord* t = operand(r, node, place);
    return t ? reinterpret_cast<const float*>(r.floats + t->offset) : nullptr;
  };
  r.linear->pack(call.in, call.out,
                 reinterpret_cast<const int8_t*>(weights + operand(r, node, 1)->offset),
                 constant(2), constant(3), r.packed[n]);
  return true;
}

// Memory for running, and the weights in the form that the kernels read.
const char* reserve(Region& r, const unsigned char* weights, uint32_t* first) {
  uint64_t quantised = 0, received = 0, workspace = 0, parts = 0;
  for (uint32_t n = 0; n < r.header.nodes; ++n) {
    const NodeRecord& node = r.nodes[n];
    if (node.op == NodeRecord::kAttention) {
      const EpAttention call = attention_of(r, node);
      const uint64_t bytes = r.attention->workspace_bytes(&call);
      const uint64_t split = r.attention->parts_bytes(&call);
      workspace = bytes > workspace ? bytes : workspace;
      parts = split > parts ? split : parts;
      const uint64_t rows = uint64_t{sizeof(float)} * r.attention->steps(&call) * call.keys;
      if (operand(r, node, 5) && rows > received) received = rows;
    } else if (node.op == NodeRecord::kLinearInt8) {
      const EpLinear call = linear_of(r, node);
      const uint64_t bytes = r.linear->quantised_bytes(call.rows, call.in);
      quantised = bytes > quantised ? bytes : quantised;
      r.packers[n] = packer_of(r, n, first);
      if (r.packers[n] == n && !pack(r, n, weights)) return "out of memory";
    }
  }
  r.workspace_bytes = rounded(workspace);
  r.arena = take(r.header.arena_bytes);
  // What a damaged region reads before it writes it is at least always the same.
  if (r.arena) memset(r.arena, 0, r.header.arena_bytes);
  r.quantised = take(quantised);
  r.received = take(received);
  r.workspaces = take(r.workspace_bytes * r.threads);
  r.parts = take(parts);
  return r.arena && r.quantised && r.received && r.workspaces && r.parts ? nullptr
                                                                         : "out of memory";
}

}  // namespace

Region* region_load(const void* bytes, size_t count, int threads, const char** why_not) {
  Region* region = static_cast<Region*>(calloc(1, sizeof(Region)));
  *why_not = "out of memory";
  if (!region) return nullptr;
  region->threads = threads < 1 ? 1 : threads;
  region->attention = ep_attention_kernel(nullptr);
  region->norm = ep_norm_kernel(nullptr);
  region->linear = ep_linear_kernel(nullptr);
  const unsigned char* first = static_cast<const unsigned char*>(bytes);
  *why_not = read(*region, first, count);
  if (!*why_not) {
    void* named = calloc(region->header.tensors + 1, sizeof(uint32_t));
    const unsigned char* weights = first + count - region->header.int8_bytes;
    *why_not = named ? reserve(*region, weights, static_cast<uint32_t*>(named)) : "out of memory";
    free(named);
  }
  if (!*why_not) return region;
  region_free(region);
  return nullptr;
}

void region_free(Region* region) {
  if (!region) return;
  for (uint32_t n = 0; region->packed && n < region->header.nodes; ++n) free(region->packed[n]);
  for (void* memory : {static_cast<void*>(region->tensors), static_cast<void*>(region->nodes),
                       static_cast<void*>(region->sizes), static_cast<void*>(region->floats),
                       static_cast<void*>(region->arena), static_cast<void*>(region->quantised),
                       static_cast<void*>(region->received), static_cast<void*>(region->workspaces),
                       static_cast<void*>(region->packed), static_cast<void*>(region->parts),
                       static_cast<void*>(region->types), static_cast<void*>(region->packers),
                       static_cast<void*>(region)})
    free(memory);
}

int region_inputs(const Region& r) { return static_cast<int>(r.header.inputs); }
int region_outputs(const Region& r) { return static_cast<int>(r.header.outputs); }
int64_t region_input_size(const Region& r, int number) { return r.sizes[number]; }
int64_t region_output_size(const Region& r, int number) {
  return r.sizes[r.header.inputs + number];
}
bool region_input_is_half(const Region& r, int number) {
  return r.types[number] == TensorRecord::kFloat16;
}
bool region_output_is_half(const Region& r, int number) {
  return r.types[r.header.inputs + number] == TensorRecord::kFloat16;
}
int region_nodes(const Region& r) { return static_cast<int>(r.header.nodes); }
const char* region_op(const Region& r, int node) { return op_of(r.nodes[node].op)->name; }

bool region_run(const Region& r, int node, const float* const* inputs, float* const* outputs,
                Threads& threads) {
  const NodeRecord& record = r.nodes[node];
  return op_of(record.op)->run(r, Operands{r, record, inputs, outputs}, threads);
}

}  // namespace edgeprune
