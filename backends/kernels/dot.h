// Dot products of a few 8-bit numbers, added to int32: all that plain vector types do not reach.
//
// kDepth inputs of a row, in every lane of a Group, meet kDepth weights of each of kLanes columns.
// Nothing saturates; the sums are exact. Included once, after vector.h.
#ifndef EDGEPRUNE_DOT_H
#define EDGEPRUNE_DOT_H

#include "vector.h"

#if defined(__x86_64__)
#include <immintrin.h>
#else
#include <arm_neon.h>
#endif

template <typename To>
static inline To read_as(const void* from) {
  To result;
  __builtin_memcpy(&result, from, sizeof(To));
  return result;
}
template <typename From>
static inline void write_as(void* to, From from) {
  __builtin_memcpy(to, &from, sizeof(From));
}

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)

typedef uint8_t Input;
constexpr int kOffset = 0, kDepth = 4, kTogether = 1;
typedef VecInt Group, Weights;

static inline Group spread(const Input* x, int64_t) { return read_as<int32_t>(x) - VecInt{}; }
static inline Weights weights_at(const int8_t* from) { return read_as<Weights>(from); }

static inline VecInt dot(VecInt sums, Group x, Weights weights) {
#if defined(__AVX512VNNI__)
  return (VecInt)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)x, (__m512i)weights);
#else
  return (VecInt)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)x, (__m256i)weights);
#endif
}

#elif defined(__x86_64__)

// Products of 16 bits: those of 8 bits (maddubs) saturate when two of them add up to more than
// 32,767.
typedef int16_t Input;
constexpr int kOffset = 0, kDepth = 2, kTogether = 1;
typedef VecInt Group;
typedef int16_t Weights __attribute__((vector_size(4 * kLanes)));
typedef int8_t Narrow __attribute__((vector_size(2 * kLanes)));

static inline Group spread(const Input* x, int64_t) { return read_as<int32_t>(x) - VecInt{}; }
static inline Weights weights_at(const int8_t* from) {
  return __builtin_convertvector(read_as<Narrow>(from), Weights);
}

static inline VecInt dot(VecInt sums, Group x, Weights weights) {
#if defined(__AVX512BW__)
  return sums + (VecInt)_mm512_madd_epi16((__m512i)x, (__m512i)weights);
#elif defined(__AVX2__)
  return sums + (VecInt)_mm256_madd_epi16((__m256i)x, (__m256i)weights);
#else
  return sums + (VecInt)_mm_madd_epi16((__m128i)x, (__m128i)weights);
#endif
}

#elif defined(__ARM_FEATURE_MATMUL_INT8)

// Two rows at once: {row 0, row 1} x {column 0, column 1} fill a vector of sums.
typedef int8_t Input;
constexpr int kOffset = 128, kDepth = 8, kTogether = 2;
typedef int8x16_t Group, Weights;

static inline Group spread(const Input* x, int64_t stride) {
  return vcombine_s8(vld1_s8(x), vld1_s8(x + stride));
}
static inline Weights weights_at(const int8_t* from) { return vld1q_s8(from); }

static inline VecInt dot(VecInt sums, Group x, Weights weights) {
  return (VecInt)vmmlaq_s32((int32x4_t)sums, x, weights);
}

static inline VecInt row_of(const VecInt* sums, int row) {
  return row ? __builtin_shufflevector(sums[0], sums[1], 2, 3, 6, 7)
             : __builtin_shufflevector(sums[0], sums[1], 0, 1, 4, 5);
}

#elif defined(__ARM_FEATURE_DOTPROD)

typedef int8_t Input;
constexpr int kOffset = 128, kDepth = 4, kTogether = 1;
typedef int8x16_t Group, Weights;

static inline Group spread(const Input* x, int64_t) {
  return vreinterpretq_s8_s32(vdupq_n_s32(read_as<int32_t>(x)));
}
static inline Weights weights_at(const int8_t* from) { return vld1q_s8(from); }

static inline VecInt dot(VecInt sums, Group x, Weights weights) {
  return (VecInt)vdotq_s32((int32x4_t)sums, weights, x);
}

#else

typedef int8_t Input;
constexpr int kOffset = 128, kDepth = 2, kTogether = 1;
typedef int8x8_t Group, Weights;

static inline Group spread(const Input* x, int64_t) {
  return vreinterpret_s8_s16(vdup_n_s16(read_as<int16_t>(x)));
}
static inline Weights weights_at(const int8_t* from) { return vld1_s8(from); }

static inline VecInt dot(VecInt sums, Group x, Weights weights) {
  return (VecInt)vpadalq_s16((int32x4_t)sums, vmull_s8(x, weights));
}

#endif

#if !defined(__ARM_FEATURE_MATMUL_INT8)
// The sums of one row among kTogether, of kLanes columns.
static inline VecInt row_of(const VecInt* sums, int) { return *sums; }
#endif

#endif
