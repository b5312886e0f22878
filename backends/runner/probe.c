// How fast one processor is: probe CPU MIB
// prints fp32 and int8 operations a second in registers, and bytes a second of a large copy, each
// in thousand millions, the best of twelve; int8 is 0 where this was compiled for no instruction
// of it. A multiply-add counts as two, a copied byte as two.
#define _GNU_SOURCE
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__aarch64__)
#include <arm_neon.h>
#elif defined(__AVX2__)
#include <immintrin.h>
#endif

enum { TIMES = 12, LOOPS = 200000 };

static double now_s(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// As wide as the registers are, and as many chains of sums as there are registers for: sixteen keep
// four pipes of four cycles busy.
#if defined(__AVX512F__)
#define BYTES 64
#define CHAINS 16
#elif defined(__AVX2__)
#define BYTES 32
#define CHAINS 12
#elif defined(__aarch64__)
#define BYTES 16
#define CHAINS 16
#else
#define BYTES 16
#define CHAINS 12
#endif
typedef float floats __attribute__((vector_size(BYTES)));

#if defined(__ARM_FEATURE_MATMUL_INT8)
typedef int32x4_t sums;
#define DOT(sum, x) vmmlaq_s32(sum, x, x)
#define DOT_OPERATIONS 64
typedef int8x16_t bytes;
#elif defined(__ARM_FEATURE_DOTPROD)
typedef int32x4_t sums;
#define DOT(sum, x) vdotq_s32(sum, x, x)
#define DOT_OPERATIONS 32
typedef int8x16_t bytes;
#elif defined(__AVX512VNNI__)
typedef __m512i sums;
#define DOT(sum, x) _mm512_dpbusd_epi32(sum, x, x)
#define DOT_OPERATIONS 128
typedef __m512i bytes;
#elif defined(__AVXVNNI__)
typedef __m256i sums;
#define DOT(sum, x) _mm256_dpbusd_avx_epi32(sum, x, x)
#define DOT_OPERATIONS 64
typedef __m256i bytes;
#endif

// Makes the compiler believe that a register was changed.
#define TOUCH(x) __asm__ volatile("" : "+" REGISTER(x))
#if defined(__aarch64__)
#define REGISTER(x) "w"(x)
#else
#define REGISTER(x) "v"(x)
#endif

static double fp32_operations(void) {
  floats sum[CHAINS], x;
  for (int i = 0; i < CHAINS; ++i) memset(&sum[i], 0, sizeof sum[i]);
  memset(&x, 0, sizeof x);
  TOUCH(x);
  for (int loop = 0; loop < LOOPS; ++loop) {
#pragma clang loop unroll(full)
    for (int i = 0; i < CHAINS; ++i) sum[i] = x * x + sum[i];
#pragma clang loop unroll(full)
    for (int i = 0; i < CHAINS; ++i) TOUCH(sum[i]);
  }
  return 2.0 * CHAINS * LOOPS * (BYTES / sizeof(float));
}

static double int8_operations(void) {
#ifdef DOT
  sums sum[CHAINS];
  bytes x;
  for (int i = 0; i < CHAINS; ++i) memset(&sum[i], 0, sizeof sum[i]);
  memset(&x, 0, sizeof x);
  TOUCH(x);
  for (int loop = 0; loop < LOOPS; ++loop) {
#pragma clang loop unroll(full)
    for (int i = 0; i < CHAINS; ++i) sum[i] = DOT(sum[i], x);
#pragma clang loop unroll(full)
    for (int i = 0; i < CHAINS; ++i) TOUCH(sum[i]);
  }
  return 1.0 * CHAINS * LOOPS * DOT_OPERATIONS;
#else
  return 0;
#endif
}

static size_t copied;
static uint8_t *from, *to;

static double copy(void) {
  memcpy(to, from, copied);
  __asm__ volatile("" ::: "memory");
  return 2.0 * (double)copied;
}

static double best_giga(double (*work)(void)) {
  double best = 0;
  for (int i = 0; i <= TIMES; ++i) {
    const double start = now_s(), done = work(), rate = done / (now_s() - start);
    if (i > 0 && rate > best) best = rate;
  }
  return best * 1e-9;
}

int main(int count, char** words) {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (count != 3) return 2;
  CPU_SET((size_t)atoi(words[1]), &set);
  if (sched_setaffinity(0, sizeof set, &set)) return perror("probe: cpu"), 1;
  copied = (size_t)atoi(words[2]) << 20;
  from = malloc(copied);
  to = malloc(copied);
  if (!from || !to) return perror("probe: memory"), 1;
  memset(from, 1, copied);
  memset(to, 2, copied);
  printf("%.4g %.4g %.4g\n", best_giga(fp32_operations), best_giga(int8_operations),
         best_giga(copy));
  return 0;
}
