// IEEE half floats in memory, floats in registers: conversions that plain vector types do not
// reach. To the nearest, ties to even; infinities and NaN stay what they are.
#ifndef EDGEPRUNE_HALF_H
#define EDGEPRUNE_HALF_H

#include "vector.h"

#if defined(__F16C__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

typedef uint16_t Half;  // its bits

#if defined(__F16C__)

static inline Quad load4(const Half* from) {
  return (Quad)_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
}

#if defined(__AVX512F__)
// Without masks, of which nothing is left, g++ 12 warns of its own header.
static inline Vec load(const Half* from) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return (Vec)_mm512_maskz_cvtph_ps(0xffff, halves);
}
static inline void store(Half* to, Vec x) {
  const __m256i halves = _mm512_maskz_cvtps_ph(0xffff, (__m512)x, _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), halves);
}
#else
static inline Vec load(const Half* from) {
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
static inline void store(Half* to, Vec x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
}
#endif

#else

#if defined(__aarch64__)

static inline Vec load(const Half* from) {
  return (Vec)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from)));
}
static inline void store(Half* to, Vec x) {
  vst1_u16(to, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)x)));
}

#else

typedef Half Halves __attribute__((vector_size(2 * kLanes)));

static inline Vec load(const Half* from) {
  Halves halves;
  __builtin_memcpy(&halves, from, sizeof halves);
  const VecBits bits = __builtin_convertvector(halves, VecBits);
  const VecBits size = (bits & 0x7fff) << 13, sign = (bits & 0x8000) << 16;
  // The exponent's bias, 127 instead of 15, by a product, which also makes tiny numbers normal.
  const VecBits scaled = (VecBits)((Vec)size * 0x1p112f);
  const VecBits infinite = (VecBits)(size >= 0x0f800000) & 0x7f800000;
  return (Vec)(scaled | infinite | sign);
}

static inline void store(Half* to, Vec x) {
  const VecBits bits = (VecBits)x, size = bits & 0x7fffffff;
  // Halves below 2^-14 are whole multiples of 2^-24, which the sum with 1/2 rounds to.
  const VecBits tiny = (VecBits)((Vec)size + 0.5f) - 0x3f000000;
  const VecBits normal = (size + 0xfff + (size >> 13 & 1) - 0x38000000) >> 13;
  VecBits half = size < 0x38800000 ? tiny : normal;
  half = size >= 0x477ff000 ? VecBits{} + 0x7c00 : half;
  half = size > 0x7f800000 ? VecBits{} + 0x7e00 : half;
  const Halves halves = __builtin_convertvector(half | (bits >> 16 & 0x8000), Halves);
  __builtin_memcpy(to, &halves, sizeof halves);
}

#endif

static_assert(kLanes == 4, "wider vectors have F16C");
static inline Quad load4(const Half* from) { return (Quad)load(from); }

#endif

static inline float number(float x) { return x; }
static inline float number(Half x) {
  const Half four[4] = {x};
  return load4(four)[0];
}

// As with floats: only the first ``count`` are read, or written.
static inline Vec load_some(const Half* from, int count, float rest = 0.0f) {
  if (count >= kLanes) return load(from);
  Half some[kLanes] = {};
  for (int i = 0; i < count; ++i) some[i] = from[i];
  return first_lanes(count, load(some), rest);
}
static inline void store_some(Half* to, Vec x, int count) {
  if (count >= kLanes) return store(to, x);
  Half some[kLanes];
  store(some, x);
  for (int i = 0; i < count; ++i) to[i] = some[i];
}

// Rows of ``count`` numbers; floats come in whole vectors.
static inline void widen(const Half* from, int count, float* to) {
  for (int i = 0; i < count; i += kLanes) store(to + i, load_some(from + i, count - i));
}
static inline void narrow(const float* from, int count, Half* to) {
  for (int i = 0; i < count; i += kLanes) store_some(to + i, load(from + i), count - i);
}

#endif
