// Layer normalisation for one instruction set; compiled once for each (EP_ISA names it).
#include "layer_norm.h"

#include "half.h"
#include "kernel.h"

namespace {

INLINE float total(const Vec (&sums)[kTurns]) {
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]))[0];
}

template <class Number>
void norm_row(const EpNorm& a, int64_t place) {
  // Half floats would round the sum: it is made anew in each pass.
  constexpr bool kKept = sizeof(Number) == sizeof(float);
  const int width = a.width;
  const Number* x = static_cast<const Number*>(a.x) + place;
  const Number* residual = a.residual ? static_cast<const Number*>(a.residual) + place : nullptr;
  Number* out = static_cast<Number*>(a.out) + place;
  Number* s = a.sum ? static_cast<Number*>(a.sum) + place : kKept ? out : nullptr;
  const auto added = [&](int at, int left, float rest) INLINED {
    const Vec v = load_some(x + at, left, rest);
    return residual ? v + load_some(residual + at, left) : v;
  };
  Vec parts[kTurns] = {};
  each_vector(width, [&](int at, int left, int i) INLINED {
    const Vec v = added(at, left, 0.0f);
    if (s) store_some(s + at, v, left);
    parts[i] += v;
  });
  const float about = total(parts) / width;
  const auto again = [&](int at, int left, float rest) INLINED {
    return kKept ? load_some(s + at, left, rest) : added(at, left, rest);
  };
  // Where the mean is large, it lacks digits; the mean of what is left over has them.
  Vec sums[kTurns] = {}, squares[kTurns] = {};
  each_vector(width, [&](int at, int left, int i) INLINED {
    const Vec d = again(at, left, about) - about;
    sums[i] += d;
    squares[i] += d * d;
  });
  const float rest = total(sums) / width;
  const float variance = total(squares) / width - rest * rest;
  const float factor = 1.0f / __builtin_sqrtf(variance + a.eps);
  each_vector(width, [&](int at, int left, int) INLINED {
    const Vec d = (again(at, left, 0.0f) - about) - rest;
    const Vec weight = load_some(a.weight + at, left), bias = load_some(a.bias + at, left);
    store_some(out + at, d * factor * weight + bias, left);
  });
}

void run(const EpNorm* a, int32_t first, int32_t last) {
  const auto norm = a->type == EP_FLOAT16 ? norm_row<Half> : norm_row<float>;
  for (int row = first; row < last; ++row) norm(*a, static_cast<int64_t>(row) * a->width);
}

}  // namespace

extern "C" const EpNormKernel EP_JOIN(ep_norm_, EP_ISA) = {EP_STRING(EP_ISA), kLanes, run};
