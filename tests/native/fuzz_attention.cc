// Any call of slim attention is refused, or stays inside tensors and workspace of the sizes it
// names: also at the largest ones, of which the first and the last step are run.
#include "bytes.h"
#include "kernels/slim_attention.h"

namespace {

// Of one run, in multiplications, so that thousands of inputs take seconds.
constexpr int kWork = 1 << 21;
constexpr Wide kFloats = int64_t{1} << 33;

enum { kMask = 1, kReceived = 2, kWeights = 4, kLengths = 8, kCausal = 16, kAnyHeads = 32 };
enum { kGaps = 64, kKeyMask = 128 };
// Where attention received is not wanted, this splits the keys.
enum { kParts = kWeights };

Wide product(Wide a, Wide b, Wide c, Wide d = 1) { return a * b * c * d; }

// Floats of ``tokens`` rows; after the last one there is no gap.
Wide reach(Wide tokens, int32_t row, Wide width) {
  return tokens ? (tokens - 1) * (row ? row : width) + width : 0;
}

void set_mask(EpAttention& a, uint8_t options, const float* mask) {
  a.mask = mask;
  if (options & kKeyMask) return;
  a.mask_query = a.keys, a.mask_head = int64_t{a.keys} * a.queries;
  a.mask_batch = a.mask_head * a.heads;
}

void run(const EpAttentionKernel& kernel, EpAttention a, uint8_t options, Bytes bytes) {
  const Wide part_bytes = options & (kReceived | kCausal) ? 0 : kernel.parts_bytes(&a);
  float anywhere;
  if (part_bytes && options & kParts) a.parts = &anywhere;
  const int32_t steps = kernel.steps(&a);
  const Wide groups = Wide(a.batch) * a.kv_heads;
  REQUIRE(steps >= 0 && steps <= groups + (a.threads > 0 ? a.threads : 0));
  REQUIRE((steps == 0) == (groups == 0 || a.queries == 0));
  const Wide workspace_bytes = kernel.workspace_bytes(&a);
  REQUIRE(workspace_bytes >= product(a.keys, a.head_dim, sizeof(float)));
  const Wide widened = a.type == EP_FLOAT16 ? 4096 * sizeof(float) + product(9, 144, 4) : 0;
  REQUIRE(workspace_bytes <= product(a.keys + 64, a.head_dim + 32, 2 * sizeof(float)) + widened);
  const Wide rows = steps ? product(a.queries + 8, a.heads / a.kv_heads, groups) / steps + 8 : 0;
  const Wide work = product(rows + 16, a.keys + 64, a.head_dim);
  const Wide masks = options & kKeyMask ? a.keys : product(a.batch, a.heads, a.queries, a.keys);
  const Wide parts = Wide(steps) * a.keys, width = Wide(a.heads) * a.head_dim;
  const Wide q_floats = reach(Wide(a.batch) * a.queries, a.q_row, width);
  const Wide keys = Wide(a.batch) * a.keys, kv_width = Wide(a.kv_heads) * a.head_dim;
  const Wide k_floats = reach(keys, a.k_row, kv_width), v_floats = reach(keys, a.v_row, kv_width);
  if (!steps || work > kWork) return;
  for (Wide floats : {masks, parts, part_bytes, q_floats, k_floats, v_floats})
    if (floats > kFloats) return;

  // Half floats end where half of the bytes do.
  const Wide number = a.type == EP_FLOAT16 ? 2 : 4;
  auto q = numbers<uint16_t>(q_floats * number / 2, bytes);
  auto k = numbers<uint16_t>(k_floats * number / 2, bytes);
  auto v = numbers<uint16_t>(v_floats * number / 2, bytes);
  Guarded<char> out(static_cast<size_t>(Wide(a.batch) * a.queries * width * number));
  a.q = q->data(), a.k = k->data(), a.v = v->data(), a.out = out.data();
  auto mask = numbers<float>(options & kMask ? masks : 0, bytes);
  if (options & kMask) set_mask(a, options, mask->data());
  auto received = numbers<float>(options & kReceived ? parts : 0, bytes);
  if (options & kReceived) a.received = received->data();
  auto weights = numbers<float>(options & kWeights ? Wide(a.batch) * a.queries : 0, bytes);
  if (options & kWeights) a.query_weights = weights->data();
  if (ep_attention_refuses(&a)) return;
  Guarded<int32_t> lengths(a.batch);
  for (int i = 0; i < a.batch && i < 8; ++i) lengths[i] = bytes.size();
  if (a.batch == 1 && options & kKeyMask) lengths[0] = ep_attention_real_keys(&a);
  if (options & kLengths) a.lengths = lengths.data();
  Guarded<char> workspace(static_cast<size_t>(workspace_bytes));
  Guarded<char> memory(static_cast<size_t>(part_bytes));
  if (a.parts) a.parts = reinterpret_cast<float*>(memory.data());
  if (a.parts && work * steps > kWork) return;
  if (work * steps <= kWork) {
    kernel.run(&a, 0, steps, workspace.data());
    return kernel.merge(&a);
  }
  kernel.run(&a, 0, 1, workspace.data());
  kernel.run(&a, steps - 1, steps, workspace.data());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes(data, size);
  const uint8_t options = bytes.byte();
  EpAttention a{};
  a.scale = 1, a.causal = options & kCausal;
  a.type = bytes.one_in(3) ? EP_FLOAT16 : EP_FLOAT32;
  a.batch = bytes.size(), a.queries = bytes.size(), a.keys = bytes.size();
  a.kv_heads = bytes.size(), a.head_dim = bytes.size(), a.threads = bytes.size();
  // Few multiples would be met by chance.
  const int64_t heads = int64_t{a.kv_heads} * (bytes.byte() % 5);
  a.heads = options & kAnyHeads || heads != int32_t(heads) ? bytes.size() : int32_t(heads);
  if (ep_attention_refuses(&a)) return 0;
  if (options & kGaps) {
    a.q_row = a.heads * a.head_dim + bytes.byte(), a.k_row = bytes.size();
    a.v_row = a.kv_heads * a.head_dim + bytes.byte();
  }
  if (ep_attention_refuses(&a)) return 0;
  static const auto all = kernels(ep_attention_kernel, {"avx512", "avx2", "sse2", "neon"});
  for (const EpAttentionKernel* kernel : all) run(*kernel, a, options, bytes);
  return 0;
}
