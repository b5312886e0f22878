// Layer normalisation equals its reference in any sizes, in place too, and spreads NaN.
#include "kernels/layer_norm.h"

#include <algorithm>

#include "check.h"

namespace {

void fill(Guarded<float>& numbers, Random& random, float mean) {
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = mean + random.normal();
}

// Rows one by one, in any order.
void run(const EpNormKernel& kernel, const EpNorm& a, Random& random) {
  REQUIRE(!ep_norm_refuses(&a));
  std::vector<int> order(a.rows);
  for (int i = 0; i < a.rows; ++i) order[i] = i;
  for (int i = a.rows - 1; i > 0; --i) std::swap(order[i], order[random.between(0, i)]);
  for (int row : order) kernel.run(&a, row, row + 1);
}

double error_of(const EpNormKernel& kernel, Random& random) {
  EpNorm a{};
  a.rows = random.between(0, 9), a.width = random.one_in(3) ? 384 : random.between(1, 200);
  a.eps = random.pick({1e-12f, 1e-5f, 0.1f});
  const size_t count = static_cast<size_t>(a.rows) * a.width;
  Guarded<float> x(count), residual(count), weight(a.width), bias(a.width), out(count), sum(count);
  Guarded<float> wanted(count), wanted_sum(count);
  fill(x, random, 0), fill(residual, random, 0), fill(weight, random, 1), fill(bias, random, 0);
  // A row of one number has nothing but its rounding left, and eps to divide it by.
  if (a.width < 4) a.eps = 0.1f;
  if (count && random.one_in(4)) x[random.next() % count] = random.one_in(2) ? NAN : INFINITY;
  a.x = x.data(), a.weight = weight.data(), a.bias = bias.data();
  if (random.one_in(2)) a.residual = residual.data();
  a.out = wanted.data(), a.sum = wanted_sum.data();
  ep_norm_reference(&a);
  out.spoil(), sum.spoil();
  const bool with_sum = random.one_in(2), in_place = random.one_in(3);
  a.out = in_place ? x.data() : out.data(), a.sum = with_sum ? sum.data() : nullptr;
  run(kernel, a, random);
  const double error = relative_error(static_cast<float*>(a.out), wanted.data(), count);
  return with_sum ? fmax(error, relative_error(sum.data(), wanted_sum.data(), count)) : error;
}

// The same on half floats, their outputs no further apart than two neighbours.
double error_of_halves(const EpNormKernel& kernel, Random& random) {
  EpNorm a{};
  a.rows = random.between(1, 5), a.width = random.between(4, 200), a.type = EP_FLOAT16;
  a.eps = 1e-5f;
  const size_t count = static_cast<size_t>(a.rows) * a.width;
  Guarded<_Float16> x(count), residual(count), out(count), sum(count), wanted(count);
  Guarded<_Float16> wanted_sum(count);
  Guarded<float> weight(a.width), bias(a.width);
  fill(weight, random, 1), fill(bias, random, 0);
  for (size_t i = 0; i < count; ++i) x[i] = random.normal() + 3, residual[i] = random.normal();
  a.x = x.data(), a.weight = weight.data(), a.bias = bias.data();
  if (random.one_in(2)) a.residual = residual.data();
  a.out = wanted.data(), a.sum = wanted_sum.data();
  ep_norm_reference(&a);
  const bool in_place = random.one_in(3), with_sum = random.one_in(2);
  a.out = in_place ? x.data() : out.data(), a.sum = with_sum ? sum.data() : nullptr;
  run(kernel, a, random);
  const _Float16* got = static_cast<const _Float16*>(a.out);
  double worst = 0;
  for (size_t i = 0; i < count; ++i) {
    const double should = wanted[i], gap = fmax(0x1p-24, 0x1p-10 * fabs(should));
    worst = fmax(worst, fabs(got[i] - should) - gap);
    if (with_sum) REQUIRE(sum[i] == wanted_sum[i]);
  }
  return worst;
}

void refuse(int rows, int width) {
  EpNorm a{};
  a.rows = rows, a.width = width;
  REQUIRE(ep_norm_refuses(&a));
}

double check(const char* name, int cases) {
  const EpNormKernel* kernel = ep_norm_kernel(name);
  if (!kernel) return -1;
  refuse(-1, 1), refuse(1, 0), refuse(1, -1), refuse(INT32_MAX, INT32_MAX), refuse(0, INT32_MAX);
  double worst = 0;
  for (int i = 0; i < cases; ++i) {
    Random random(i);
    worst = fmax(worst, error_of(*kernel, random));
    worst = fmax(worst, error_of_halves(*kernel, random));
  }
  return worst;
}

const Check layer_norm("layer_norm", 2e-6, check);

}  // namespace
