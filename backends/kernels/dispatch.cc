// Which kernel this processor can run, found without libc.
#include "slim_attention.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

extern "C" {
#if defined(__x86_64__)
extern const EpAttentionKernel ep_attention_avx512, ep_attention_avx2, ep_attention_sse2;
#elif defined(__aarch64__)
extern const EpAttentionKernel ep_attention_neon;
#endif
}

namespace {

struct Choice {
  const EpAttentionKernel* kernel;
  bool (*runs)();
};

bool always() { return true; }

#if defined(__x86_64__)

struct Registers {
  uint32_t a, b, c, d;
};

Registers cpuid(uint32_t leaf) {
  Registers r{};
  if (leaf <= __get_cpuid_max(0, nullptr)) __cpuid_count(leaf, 0, r.a, r.b, r.c, r.d);
  return r;
}

// Which vector registers the operating system saves.
uint32_t saved() {
  if (!(cpuid(1).c & bit_OSXSAVE)) return 0;
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

bool has_avx2() {
  return (saved() & 0x6) == 0x6 && (cpuid(1).c & bit_FMA) && (cpuid(7).b & bit_AVX2);
}

bool has_avx512() {
  const uint32_t wanted = bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL;
  return (saved() & 0xe6) == 0xe6 && (cpuid(7).b & wanted) == wanted && has_avx2();
}

const Choice kChoices[] = {
    // the fastest first
    {&ep_attention_avx512, has_avx512},
    {&ep_attention_avx2, has_avx2},
    {&ep_attention_sse2, always},
};

#elif defined(__aarch64__)

const Choice kChoices[] = {{&ep_attention_neon, always}};

#endif

bool same(const char* one, const char* other) {
  while (*one && *one == *other) ++one, ++other;
  return *one == *other;
}

// Tensors of no tokens count as one: their rows are multiplied out all the same.
bool too_many(int64_t batch, int64_t tokens, int64_t heads, int64_t head_dim) {
  int64_t numbers = heads * head_dim;
  if (numbers > EP_MAX_NUMBERS) return true;
  numbers *= tokens < 1 ? 1 : tokens;
  return numbers > EP_MAX_NUMBERS || numbers * (batch < 1 ? 1 : batch) > EP_MAX_NUMBERS;
}

bool is_stride(int64_t floats) { return floats >= 0 && floats <= INT32_MAX; }

}  // namespace

extern "C" const EpAttentionKernel* ep_attention_kernel(const char* name) {
  for (const Choice& choice : kChoices)
    if (choice.runs() && (!name || same(name, choice.kernel->name))) return choice.kernel;
  return nullptr;
}

extern "C" const char* ep_attention_refuses(const EpAttention* a) {
  if (a->batch < 0 || a->queries < 0 || a->keys < 0) return "a negative size";
  if (a->heads < 1 || a->kv_heads < 1) return "no heads";
  if (a->heads % a->kv_heads) return "heads that are no multiple of the key-value heads";
  if (a->head_dim < 1 || a->head_dim > EP_MAX_HEAD_DIM) return "a head_dim outside 1 to 128";
  if (a->queries > EP_MAX_TOKENS || a->keys > EP_MAX_TOKENS) return "more than 2^20 tokens";
  if (a->threads > EP_MAX_THREADS) return "more than 4,096 threads";
  if (too_many(a->batch, a->queries, a->heads, a->head_dim) ||
      too_many(a->batch, a->keys, a->kv_heads, a->head_dim))
    return "a tensor of more than 2^30 numbers";
  if (a->mask && !(is_stride(a->mask_batch) && is_stride(a->mask_head) && is_stride(a->mask_query)))
    return "a mask stride outside 0 to 2^31 - 1";
  return nullptr;
}
