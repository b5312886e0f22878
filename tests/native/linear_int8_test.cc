// Linear layers in 8 bits: sums are exact, so that only their scaling may round as in the
// reference; any sizes, steps in any order, in buffers of exactly the bytes that were asked for.
#include "kernels/linear_int8.h"

#include <algorithm>
#include <memory>

#include "check.h"

namespace {

std::unique_ptr<Guarded<int32_t>> buffer(size_t bytes) {
  std::unique_ptr<Guarded<int32_t>> made(new Guarded<int32_t>((bytes + 3) / 4));
  made->spoil();
  return made;
}

// Weights of a layer, at random, or all as far out as they go.
struct Layer {
  Guarded<int8_t> weights;
  Guarded<float> scales, bias;

  Layer(Random& random, int in, int out)
      : weights(static_cast<size_t>(in) * out), scales(out), bias(out) {
    const bool extreme = random.one_in(8);
    for (size_t i = 0; i < weights.size(); ++i)
      weights[i] = extreme ? -127 : random.between(-127, 127);
    for (int o = 0; o < out; ++o) {
      scales[o] = 1e-3f + 1e-2f * random.between(0, 100) / 100;
      bias[o] = random.normal();
    }
  }
};

void run(const EpLinearKernel& kernel, EpLinear a, Random& random) {
  const int steps = kernel.steps(&a);
  std::vector<int> order(steps);
  for (int i = 0; i < steps; ++i) order[i] = i;
  for (int i = steps - 1; i > 0; --i) std::swap(order[i], order[random.between(0, i)]);
  for (int step : order) kernel.run(&a, step, step + 1);
}

double error_of(const EpLinearKernel& kernel, Random& random) {
  const int rows[] = {0, 1, 2, 7, 8, 9, 16, 17, random.between(1, 40), 130};
  const int widths[] = {1, 2, 3, 31, 32, 33, 64, random.between(1, 130), 384};
  EpLinear a{};
  a.rows = random.pick(rows), a.in = random.pick(widths), a.out = random.pick(widths);
  a.activation = random.between(EP_NO_ACTIVATION, EP_GELU);
  a.threads = random.pick({0, 1, 2, 5, 64});
  REQUIRE(!ep_linear_refuses(&a));
  Layer layer(random, a.in, a.out);
  const bool with_bias = !random.one_in(3);
  const float* bias = with_bias ? layer.bias.data() : nullptr;
  auto packed = buffer(kernel.packed_bytes(a.in, a.out));
  kernel.pack(a.in, a.out, layer.weights.data(), layer.scales.data(), bias, packed->data());

  const size_t count = static_cast<size_t>(a.rows) * a.out;
  Guarded<float> x(static_cast<size_t>(a.rows) * a.in), y(count), wanted(count);
  const float mean = random.pick({0.0f, 1.0f, -3.0f});
  for (size_t i = 0; i < x.size(); ++i) x[i] = mean + random.normal();
  a.quantised = x.data(), a.y = wanted.data();
  ep_linear_reference(&a, layer.weights.data(), layer.scales.data(), bias);

  auto quantised = buffer(kernel.quantised_bytes(a.rows, a.in));
  const int half = a.rows / 2;  // two threads', the later rows first
  kernel.quantise(x.data(), a.rows, a.in, half, a.rows, quantised->data());
  kernel.quantise(x.data(), a.rows, a.in, 0, half, quantised->data());
  y.spoil();
  a.quantised = quantised->data(), a.packed = packed->data(), a.y = y.data();
  run(kernel, a, random);
  // The GELU's error is absolute, of numbers around 1.
  return relative_error(y.data(), wanted.data(), count, 1);
}

void refuse(int EpLinear::* place, int size) {
  EpLinear a{};
  a.rows = a.in = a.out = a.threads = 1;
  REQUIRE(!ep_linear_refuses(&a));
  a.*place = size;
  REQUIRE(ep_linear_refuses(&a));
}

double check(const char* name, int cases) {
  const EpLinearKernel* kernel = ep_linear_kernel(name);
  if (!kernel) return -1;
  for (int size : {-1, INT32_MIN, INT32_MAX}) {
    refuse(&EpLinear::rows, size), refuse(&EpLinear::in, size), refuse(&EpLinear::out, size);
    refuse(&EpLinear::activation, size);
  }
  refuse(&EpLinear::threads, INT32_MAX), refuse(&EpLinear::in, 0), refuse(&EpLinear::out, 0);
  double worst = 0;
  for (int i = 0; i < cases; ++i) {
    Random random(i);
    worst = fmax(worst, error_of(*kernel, random));
  }
  return worst;
}

const Check linear_int8("linear_int8", 2e-6, check);

}  // namespace
