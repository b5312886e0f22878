// Which kernel this processor can run, found without libc.
#include "layer_norm.h"
#include "linear_int8.h"
#include "slim_attention.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

extern "C" {
#if defined(__x86_64__)
extern const EpAttentionKernel ep_attention_avx512, ep_attention_avx2, ep_attention_sse2;
extern const EpLinearKernel ep_linear_avx512vnni, ep_linear_avx512, ep_linear_avxvnni,
    ep_linear_avx2, ep_linear_sse2;
extern const EpNormKernel ep_norm_avx512, ep_norm_avx2, ep_norm_sse2;
#elif defined(__aarch64__)
extern const EpAttentionKernel ep_attention_neon;
extern const EpLinearKernel ep_linear_neon_i8mm, ep_linear_neon_dot, ep_linear_neon;
extern const EpNormKernel ep_norm_neon;
#endif
}

namespace {

template <typename Kernel>
struct Choice {
  const Kernel* kernel;
  bool (*runs)();
};

bool always() { return true; }

#if defined(__x86_64__)

struct Registers {
  uint32_t a, b, c, d;
};

Registers cpuid(uint32_t leaf, uint32_t part = 0) {
  Registers r{};
  if (leaf <= __get_cpuid_max(0, nullptr)) __cpuid_count(leaf, part, r.a, r.b, r.c, r.d);
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
  const uint32_t wanted = bit_FMA | bit_F16C;
  return (saved() & 0x6) == 0x6 && (cpuid(1).c & wanted) == wanted && (cpuid(7).b & bit_AVX2);
}

bool has_avxvnni() { return has_avx2() && (cpuid(7, 1).a & bit_AVXVNNI); }

bool has_avx512() {
  const uint32_t wanted = bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL;
  return (saved() & 0xe6) == 0xe6 && (cpuid(7).b & wanted) == wanted && has_avx2();
}

bool has_avx512vnni() { return has_avx512() && (cpuid(7).c & bit_AVX512VNNI); }

// The fastest first.
const Choice<EpAttentionKernel> kAttention[] = {{&ep_attention_avx512, has_avx512},
                                                {&ep_attention_avx2, has_avx2},
                                                {&ep_attention_sse2, always}};
const Choice<EpLinearKernel> kLinear[] = {{&ep_linear_avx512vnni, has_avx512vnni},
                                          {&ep_linear_avxvnni, has_avxvnni},
                                          {&ep_linear_avx512, has_avx512},
                                          {&ep_linear_avx2, has_avx2},
                                          {&ep_linear_sse2, always}};
const Choice<EpNormKernel> kNorm[] = {
    {&ep_norm_avx512, has_avx512}, {&ep_norm_avx2, has_avx2}, {&ep_norm_sse2, always}};

#elif defined(__aarch64__)

// A field of 4 bits in an identification register. Linux answers programs that read one from
// version 4.11 on; before, reading it would end the program.
bool answers() {
#if defined(__linux__)
  char names[6][65];  // struct utsname; the third is the version
  register long call __asm__("x8") = 160, result __asm__("x0") = reinterpret_cast<long>(names);
  __asm__ volatile("svc 0" : "+r"(result) : "r"(call) : "memory");
  int number[2] = {}, n = 0;
  for (const char* at = names[2]; !result && n < 2; ++at) {
    if (*at >= '0' && *at <= '9')
      number[n] = 10 * number[n] + *at - '0';
    else
      ++n;
  }
  return number[0] > 4 || (number[0] == 4 && number[1] >= 11);
#else
  return false;
#endif
}

bool has_dot() {
  if (!answers()) return false;
  uint64_t features;
  __asm__("mrs %0, ID_AA64ISAR0_EL1" : "=r"(features));
  return features >> 44 & 15;
}

bool has_i8mm() {
  if (!answers()) return false;
  uint64_t features;
  __asm__("mrs %0, ID_AA64ISAR1_EL1" : "=r"(features));
  return features >> 52 & 15;
}

const Choice<EpAttentionKernel> kAttention[] = {{&ep_attention_neon, always}};
const Choice<EpLinearKernel> kLinear[] = {
    {&ep_linear_neon_i8mm, has_i8mm}, {&ep_linear_neon_dot, has_dot}, {&ep_linear_neon, always}};
const Choice<EpNormKernel> kNorm[] = {{&ep_norm_neon, always}};

#endif

bool same(const char* one, const char* other) {
  while (*one && *one == *other) ++one, ++other;
  return *one == *other;
}

template <typename Kernel, int kCount>
const Kernel* chosen(const Choice<Kernel> (&choices)[kCount], const char* name) {
  for (const Choice<Kernel>& choice : choices)
    if (choice.runs() && (!name || same(name, choice.kernel->name))) return choice.kernel;
  return nullptr;
}

// Tensors of no tokens count as one: their rows are multiplied out all the same.
bool too_many(int64_t batch, int64_t tokens, int64_t heads, int64_t head_dim) {
  int64_t numbers = heads * head_dim;
  if (numbers > EP_MAX_NUMBERS) return true;
  numbers *= tokens < 1 ? 1 : tokens;
  return numbers > EP_MAX_NUMBERS || numbers * (batch < 1 ? 1 : batch) > EP_MAX_NUMBERS;
}

bool too_many(int64_t rows, int64_t width) {
  return (rows < 1 ? 1 : rows) * width > EP_MAX_NUMBERS;
}

bool is_stride(int64_t floats) { return floats >= 0 && floats <= INT32_MAX; }

bool is_type(int32_t type) { return type == EP_FLOAT32 || type == EP_FLOAT16; }

const char kTooMany[] = "a tensor of more than 2^30 numbers",
           kThreads[] = "more than 4,096 threads", kType[] = "numbers of an unknown type";

}  // namespace

extern "C" const EpAttentionKernel* ep_attention_kernel(const char* name) {
  return chosen(kAttention, name);
}

extern "C" const EpLinearKernel* ep_linear_kernel(const char* name) {
  return chosen(kLinear, name);
}

extern "C" const EpNormKernel* ep_norm_kernel(const char* name) { return chosen(kNorm, name); }

extern "C" int32_t ep_attention_set_mask(EpAttention* a, const float* mask,
                                         const int32_t sizes[4]) {
  const int32_t whole[] = {a->batch, a->heads, a->queries};
  int64_t* strides[] = {&a->mask_batch, &a->mask_head, &a->mask_query};
  if (sizes[3] != a->keys) return false;
  int64_t stride = a->keys;
  for (int axis = 2; axis >= 0; --axis) {
    if (sizes[axis] != 1 && sizes[axis] != whole[axis]) return false;
    *strides[axis] = sizes[axis] == 1 ? 0 : stride;
    stride *= sizes[axis];
  }
  a->mask = mask;
  return true;
}

extern "C" int32_t ep_attention_real_keys(const EpAttention* a) {
  constexpr float kPadding = -1e8f, kReal = -1e4f;
  if (!a->mask || a->batch != 1 || a->mask_head || a->mask_query) return a->keys;
  int32_t count = a->keys;
  while (count && a->mask[count - 1] < kPadding) --count;
  // The others must be let through by far more, or all are the same.
  return count && a->mask[count - 1] > kReal ? count : a->keys;
}

extern "C" const char* ep_attention_refuses(const EpAttention* a) {
  if (a->batch < 0 || a->queries < 0 || a->keys < 0) return "a negative size";
  if (a->heads < 1 || a->kv_heads < 1) return "no heads";
  if (a->heads % a->kv_heads) return "heads that are no multiple of the key-value heads";
  if (a->head_dim < 1 || a->head_dim > EP_MAX_HEAD_DIM) return "a head_dim outside 1 to 128";
  if (a->queries > EP_MAX_TOKENS || a->keys > EP_MAX_TOKENS) return "more than 2^20 tokens";
  if (a->threads > EP_MAX_THREADS) return kThreads;
  if (!is_type(a->type)) return kType;
  if (too_many(a->batch, a->queries, a->heads, a->head_dim) ||
      too_many(a->batch, a->keys, a->kv_heads, a->head_dim))
    return kTooMany;
  const int32_t q = a->heads * a->head_dim, kv = a->kv_heads * a->head_dim;
  if ((a->q_row && a->q_row < q) || (a->k_row && a->k_row < kv) || (a->v_row && a->v_row < kv))
    return "rows that overlap";
  if (a->mask && !(is_stride(a->mask_batch) && is_stride(a->mask_head) && is_stride(a->mask_query)))
    return "a mask stride outside 0 to 2^31 - 1";
  return nullptr;
}

extern "C" const char* ep_linear_refuses(const EpLinear* a) {
  if (a->rows < 0) return "a negative number of rows";
  if (a->in < 1 || a->in > EP_MAX_LINEAR_IN) return "inputs outside 1 to 65,536";
  if (a->out < 1) return "no outputs";
  if (a->activation < EP_NO_ACTIVATION || a->activation > EP_GELU) return "an unknown activation";
  if (a->threads > EP_MAX_THREADS) return kThreads;
  if (too_many(a->rows, a->in) || too_many(a->rows, a->out) || too_many(a->out, a->in))
    return kTooMany;
  return nullptr;
}

extern "C" const char* ep_norm_refuses(const EpNorm* a) {
  if (a->rows < 0) return "a negative number of rows";
  if (a->width < 1) return "no width";
  if (!is_type(a->type)) return kType;
  if (too_many(a->rows, a->width)) return kTooMany;
  return nullptr;
}
