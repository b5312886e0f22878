// One vector of floats, as wide as the instruction set that this is compiled for.
#ifndef EDGEPRUNE_VECTOR_H
#define EDGEPRUNE_VECTOR_H

#include <stdint.h>

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kLanes = 8, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kRegisters = 32;
#else
constexpr int kLanes = 4, kRegisters = 16;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t VecInt __attribute__((vector_size(4 * kLanes)));
typedef uint32_t VecBits __attribute__((vector_size(4 * kLanes)));
typedef float VecAnywhere __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

typedef float Quad __attribute__((vector_size(16)));
typedef float QuadAnywhere __attribute__((vector_size(16), aligned(4), may_alias));

static inline Vec load(const float* from) { return *reinterpret_cast<const VecAnywhere*>(from); }
static inline void store(float* to, Vec x) { *reinterpret_cast<VecAnywhere*>(to) = x; }
static inline Quad load4(const float* from) { return *reinterpret_cast<const QuadAnywhere*>(from); }
static inline void store4(float* to, Quad x) { *reinterpret_cast<QuadAnywhere*>(to) = x; }
static inline Vec splat(float x) { return x - Vec{}; }
static inline Vec select(VecInt condition, Vec yes, Vec no) { return condition ? yes : no; }
static inline Vec larger(Vec x, Vec y) { return select(x > y, x, y); }
static inline Vec lesser(Vec x, Vec y) { return select(x < y, x, y); }

static inline VecInt iota() {
  VecInt result;
  for (int i = 0; i < kLanes; ++i) result[i] = i;
  return result;
}

template <int... kLane>
struct Lanes {};
template <int kCount, int... kLane>
struct UpTo : UpTo<kCount - 1, kCount - 1, kLane...> {};
template <int... kLane>
struct UpTo<0, kLane...> {
  using Each = Lanes<kLane...>;
};

// ``x`` in the lanes before ``count``, ``rest`` in the others.
static inline Vec first_lanes(int count, Vec x, float rest) {
  return select(iota() < count, x, splat(rest));
}

// Only the first ``count`` lanes are read, the others are ``rest``; only they are written.
static inline Vec load_some(const float* from, int count, float rest = 0.0f) {
  if (count >= kLanes) return load(from);
#if __has_builtin(__builtin_masked_load)
  typedef bool Bools __attribute__((ext_vector_type(kLanes)));
  typedef float Floats __attribute__((ext_vector_type(kLanes)));
  return (Vec)__builtin_masked_load(__builtin_convertvector(iota() < count, Bools), from,
                                    (Floats)splat(rest));
#else
  Vec x = splat(rest);
  for (int i = 0; i < count; ++i) x[i] = from[i];
  return x;
#endif
}
static inline void store_some(float* to, Vec x, int count) {
  if (count >= kLanes) return store(to, x);
  for (int i = 0; i < count; ++i) to[i] = x[i];
}

// Calls step(at, left, i) for each vector of a row of ``count`` floats; ``left`` tells how many
// there are from ``at`` on. Four vectors (i) in turn: one sum alone would wait for each addition.
constexpr int kTurns = 4;
template <typename Step>
static inline __attribute__((always_inline)) void each_vector(int count, Step step) {
  int at = 0;
  for (; at + kTurns * kLanes <= count; at += kTurns * kLanes)
    _Pragma("GCC unroll 4") for (int i = 0; i < kTurns; ++i) step(at + i * kLanes, kLanes, i);
  for (; at < count; at += kLanes) step(at, count - at, 0);
}

template <int kHalf, int... kLane>
static inline Vec across(Vec x, Lanes<kLane...>) {
  return __builtin_shufflevector(x, x, (kLane ^ kHalf)...);
}
// The largest, or the sum, of all lanes, in every lane.
template <int kHalf = kLanes / 2>
static inline Vec largest(Vec x) {
  x = larger(x, across<kHalf>(x, UpTo<kLanes>::Each()));
  if constexpr (kHalf > 1) return largest<kHalf / 2>(x);
  return x;
}
template <int kHalf = kLanes / 2>
static inline Vec sum(Vec x) {
  x += across<kHalf>(x, UpTo<kLanes>::Each());
  if constexpr (kHalf > 1) return sum<kHalf / 2>(x);
  return x;
}
static inline bool any(VecInt condition) { return sum(select(condition, splat(1), Vec{}))[0] != 0; }

// kCount floats, 4 or kLanes of them, again and again.
template <int... kLane>
static inline Vec repeated(Quad x, Lanes<kLane...>) {
  return __builtin_shufflevector(x, x, (kLane % 4)...);
}
template <int kCount>
static inline Vec load_again(const float* from) {
  if constexpr (kCount == kLanes) return load(from);
  return repeated(load4(from), UpTo<kLanes>::Each());
}

// The next whole number, or one more; as they are from 2^22 on.
static inline Vec whole_above(Vec x) {
  const float round = 12582912.0f;
  const VecInt small = (x < 4194304.0f) & (x > -4194304.0f);
  return select(small, (x + round) - round + 1.0f, x);
}

// 2 to the (x - top), for a whole number top, |top| <= kLargestTop, and x no larger than it. 0
// below -126; NaN stays NaN. Relative error below 2.2e-7.
//
// x = n + f, f in [-1/2, 1/2]: a minimax polynomial gives 2^f (7.5e-8), n - top goes into the
// exponent. Adding 1.5 x 2^23 leaves a whole number in the low bits, and takes top off for nothing.
constexpr float kLargestTop = 4194304.0f;

static inline Vec exp2_below(Vec x, Vec top) {
  const Vec shift = 12582912.0f - top;
  const Vec shifted = x + shift;
  const Vec f = x - (shifted - shift);
  // By pairs: in one chain, the multiplications wait for each other.
  const Vec ff = f * f;
  const Vec low = 6.9314696706e-01f * f + 1.0000000717e+00f;
  const Vec middle = 5.5507132735e-02f * f + 2.4022119724e-01f;
  const Vec high = 1.3276471993e-03f * f + 9.6755413344e-03f;
  const Vec p = (high * ff + middle) * ff + low;
  // Casts between vector types keep the bits; unsigned ones may wrap.
  const VecBits bits = (VecBits)p + ((VecBits)shifted << 23);
  return select(x < top - 126.0f, Vec{}, (Vec)bits);
}

#endif
