// Any call of slim attention is refused, or stays inside tensors and workspace of the sizes it
// names: also at the largest ones, of which the first and the last step are run.
#include <memory>

#include "check.h"
#include "kernels/slim_attention.h"

namespace {

using Wide = __int128;
// Of one run, in multiplications, so that thousands of inputs take seconds.
constexpr Wide kWork = 1 << 21;
constexpr Wide kFloats = int64_t{1} << 33;

// Numbers out of the fuzzer's bytes; 0 when they are used up.
class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), left_(size) {}
  uint8_t byte() { return left_ ? (--left_, *data_++) : 0; }
  // Small sizes mostly, powers of two and their neighbours, or anything.
  int32_t size() {
    const uint8_t kind = byte();
    if (kind < 160) return byte() % 70;
    if (kind < 240) return static_cast<int32_t>((uint32_t{1} << byte() % 32) + byte() % 3 - 1);
    return static_cast<int32_t>(word());
  }
  uint32_t word() {
    uint32_t all = 0;
    for (int i = 0; i < 4; ++i) all = all << 8 | byte();
    return all;
  }

 private:
  const uint8_t* data_;
  size_t left_;
};

Wide product(Wide a, Wide b, Wide c, Wide d = 1) { return a * b * c * d; }

std::unique_ptr<Guarded<float>> floats(Wide count, Bytes& bytes) {
  std::unique_ptr<Guarded<float>> made(new Guarded<float>(static_cast<size_t>(count)));
  for (Wide i = 0; i < count && i < 64; ++i) {
    const uint32_t bits = bytes.word();
    memcpy(&(*made)[i], &bits, sizeof bits);
  }
  return made;
}

void run(const EpAttentionKernel& kernel, EpAttention a, uint8_t options, Bytes bytes) {
  const int32_t steps = kernel.steps(&a);
  const Wide groups = Wide(a.batch) * a.kv_heads;
  REQUIRE(steps >= 0 && steps <= groups + (a.threads > 0 ? a.threads : 0));
  REQUIRE((steps == 0) == (groups == 0 || a.queries == 0));
  const Wide workspace_bytes = kernel.workspace_bytes(&a);
  REQUIRE(workspace_bytes >= product(a.keys, a.head_dim, sizeof(float)));
  REQUIRE(workspace_bytes <= product(a.keys + 64, a.head_dim + 32, 2 * sizeof(float)));
  const Wide rows = steps ? product(a.queries + 8, a.heads / a.kv_heads, groups) / steps + 8 : 0;
  const Wide work = product(rows + 16, a.keys + 64, a.head_dim);
  const Wide masks = product(a.batch, a.heads, a.queries, a.keys), parts = Wide(steps) * a.keys;
  if (!steps || work > kWork || masks > kFloats || parts > kFloats) return;

  auto q = floats(product(a.batch, a.queries, a.heads, a.head_dim), bytes);
  auto k = floats(product(a.batch, a.keys, a.kv_heads, a.head_dim), bytes);
  auto v = floats(k->size(), bytes);
  auto out = floats(q->size(), bytes);
  a.q = q->data(), a.k = k->data(), a.v = v->data(), a.out = out->data();
  auto mask = floats(options & 1 ? masks : 0, bytes);
  if (options & 1) {
    a.mask = mask->data();
    a.mask_query = a.keys, a.mask_head = int64_t{a.keys} * a.queries;
    a.mask_batch = a.mask_head * a.heads;
  }
  auto received = floats(options & 2 ? parts : 0, bytes);
  if (options & 2) a.received = received->data();
  auto weights = floats(options & 4 ? Wide(a.batch) * a.queries : 0, bytes);
  if (options & 4) a.query_weights = weights->data();
  Guarded<int32_t> lengths(a.batch);
  for (int i = 0; i < a.batch && i < 8; ++i) lengths[i] = bytes.size();
  if (options & 8) a.lengths = lengths.data();
  if (ep_attention_refuses(&a)) return;
  Guarded<char> workspace(static_cast<size_t>(workspace_bytes));
  if (work * steps <= kWork) return kernel.run(&a, 0, steps, workspace.data());
  kernel.run(&a, 0, 1, workspace.data());
  kernel.run(&a, steps - 1, steps, workspace.data());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes(data, size);
  const uint8_t options = bytes.byte();
  EpAttention a{};
  a.scale = 1, a.causal = options & 16;
  a.batch = bytes.size(), a.queries = bytes.size(), a.keys = bytes.size();
  a.kv_heads = bytes.size(), a.head_dim = bytes.size(), a.threads = bytes.size();
  // Few multiples would be met by chance.
  const int64_t heads = int64_t{a.kv_heads} * (bytes.byte() % 5);
  a.heads = options & 32 || heads != int32_t(heads) ? bytes.size() : int32_t(heads);
  if (ep_attention_refuses(&a)) return 0;
  for (const char* name : {"avx512", "avx2", "sse2", "neon"})
    if (const EpAttentionKernel* kernel = ep_attention_kernel(name))
      run(*kernel, a, options, bytes);
  return 0;
}
