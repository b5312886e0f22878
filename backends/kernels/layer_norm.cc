// Layer normalisation for one instruction set; compiled once for each (EP_ISA names it).
#include "layer_norm.h"

#include "kernel.h"

namespace {

INLINE float total(const Vec (&sums)[kTurns]) {
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]))[0];
}

// Stores x + residual, and returns its mean.
INLINE float add(const float* x, const float* residual, int width, float* to) {
  Vec sums[kTurns] = {};
  each_vector(width, [&](int at, int left, int i) INLINED {
    Vec s = load_some(x + at, left);
    if (residual) s += load_some(residual + at, left);
    store_some(to + at, s, left);
    sums[i] += s;
  });
  return total(sums) / width;
}

// A row's mean in two parts, and the inverse of its standard deviation.
struct Moments {
  float about, rest, factor;
};

// Where the mean is large, it lacks digits; the mean of what is left over has them.
INLINE Moments moments(const float* s, int width, float about, float eps) {
  Vec sums[kTurns] = {}, squares[kTurns] = {};
  each_vector(width, [&](int at, int left, int i) INLINED {
    const Vec d = load_some(s + at, left, about) - about;
    sums[i] += d;
    squares[i] += d * d;
  });
  const float rest = total(sums) / width;
  const float variance = total(squares) / width - rest * rest;
  return {about, rest, 1.0f / __builtin_sqrtf(variance + eps)};
}

INLINE void normalise(const EpNorm& a, const float* s, const Moments& of, float* out) {
  each_vector(a.width, [&](int at, int left, int) INLINED {
    const Vec d = (load_some(s + at, left) - of.about) - of.rest;
    const Vec weight = load_some(a.weight + at, left), bias = load_some(a.bias + at, left);
    store_some(out + at, d * of.factor * weight + bias, left);
  });
}

void run(const EpNorm* a, int32_t first, int32_t last) {
  // Some rows at once, each step for all of them: one alone would wait for its sums.
  constexpr int kAtOnce = 4;
  const int64_t width = a->width;
  for (int row = first; row < last; row += kAtOnce) {
    const int count = smaller(kAtOnce, last - row);
    const int64_t place = row * width;
    float* s = (a->sum ? a->sum : a->out) + place;
    float means[kAtOnce];
    Moments found[kAtOnce];
    for (int r = 0; r < count; ++r) {
      const int64_t at = place + r * width;
      means[r] = add(a->x + at, a->residual ? a->residual + at : nullptr, width, s + r * width);
    }
    for (int r = 0; r < count; ++r) found[r] = moments(s + r * width, width, means[r], a->eps);
    for (int r = 0; r < count; ++r)
      normalise(*a, s + r * width, found[r], a->out + place + r * width);
  }
}

}  // namespace

extern "C" const EpNormKernel EP_JOIN(ep_norm_, EP_ISA) = {EP_STRING(EP_ISA), kLanes, run};
