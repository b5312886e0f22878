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

void norm_row(const EpNorm& a, int64_t place) {
  const int width = a.width;
  float* out = a.out + place;
  float* s = a.sum ? a.sum + place : out;
  const float about = add(a.x + place, a.residual ? a.residual + place : nullptr, width, s);
  // Where the mean is large, it lacks digits; the mean of what is left over has them.
  Vec sums[kTurns] = {}, squares[kTurns] = {};
  each_vector(width, [&](int at, int left, int i) INLINED {
    const Vec d = load_some(s + at, left, about) - about;
    sums[i] += d;
    squares[i] += d * d;
  });
  const float rest = total(sums) / width;
  const float variance = total(squares) / width - rest * rest;
  const float factor = 1.0f / __builtin_sqrtf(variance + a.eps);
  each_vector(width, [&](int at, int left, int) INLINED {
    const Vec d = (load_some(s + at, left) - about) - rest;
    const Vec weight = load_some(a.weight + at, left), bias = load_some(a.bias + at, left);
    store_some(out + at, d * factor * weight + bias, left);
  });
}

void run(const EpNorm* a, int32_t first, int32_t last) {
  for (int row = first; row < last; ++row) norm_row(*a, static_cast<int64_t>(row) * a->width);
}

}  // namespace

extern "C" const EpNormKernel EP_JOIN(ep_norm_, EP_ISA) = {EP_STRING(EP_ISA), kLanes, run};
