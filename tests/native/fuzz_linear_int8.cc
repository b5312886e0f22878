// Any call of a linear layer is refused, or stays inside tensors and buffers of the sizes that it
// asks for: also at the largest ones, of which the first and the last rows and steps are run.
#include "bytes.h"
#include "kernels/linear_int8.h"

namespace {

// Of one run, in multiplications, so that thousands of inputs take seconds.
constexpr int kWork = 1 << 16;
using Buffer = Guarded<int32_t>;

// Rows and columns that a step takes at most.
constexpr int kRows = 128 + 8, kColumns = 48;

// Too many weights to go through stay zeros, packed as they are.
void pack(const EpLinearKernel& kernel, const EpLinear& a, bool with_bias, Bytes& bytes,
          Buffer& packed) {
  if (Wide(a.in) * a.out > kWork) return;
  auto weights = numbers<int8_t>(Wide(a.in) * a.out, bytes);
  auto scales = numbers<float>(a.out, bytes), bias = numbers<float>(a.out, bytes);
  kernel.pack(a.in, a.out, weights->data(), scales->data(), with_bias ? bias->data() : nullptr,
              packed.data());
}

void quantise(const EpLinearKernel& kernel, const EpLinear& a, Bytes& bytes, Buffer& quantised) {
  auto x = numbers<float>(Wide(a.rows) * a.in, bytes);
  const bool all = Wide(a.rows) * a.in <= kWork;
  const int32_t early = all ? a.rows / 2 : a.rows ? 1 : 0, late = all ? early : a.rows - early;
  kernel.quantise(x->data(), a.rows, a.in, late, a.rows, quantised.data());
  kernel.quantise(x->data(), a.rows, a.in, 0, early, quantised.data());
}

void run(const EpLinearKernel& kernel, EpLinear a, bool with_bias, Bytes bytes) {
  const Wide steps = kernel.steps(&a), threads = a.threads > 0 ? a.threads : 0;
  REQUIRE((steps == 0) == (a.rows == 0));
  REQUIRE(steps >= 0 && steps <= Wide(a.out) * (a.rows / 128 + 2) + threads);
  const Wide packed_bytes = kernel.packed_bytes(a.in, a.out);
  REQUIRE(packed_bytes >= Wide(a.out) * (a.in + 12));
  REQUIRE(packed_bytes <= (Wide(a.out) + 16) * (a.in + 20));
  const Wide quantised_bytes = kernel.quantised_bytes(a.rows, a.in);
  REQUIRE(quantised_bytes >= Wide(a.rows) * (a.in + 8));
  REQUIRE(quantised_bytes <= (Wide(a.rows) + 8) * 2 * (a.in + 12));

  Buffer packed((packed_bytes + 3) / 4), quantised((quantised_bytes + 3) / 4);
  pack(kernel, a, with_bias, bytes, packed);
  quantise(kernel, a, bytes, quantised);
  const Wide work = Wide(a.rows < kRows ? a.rows : kRows) * kColumns * a.in;
  if (!steps || work > 16 * kWork) return;
  Guarded<float> y(static_cast<size_t>(a.rows) * a.out);
  a.packed = packed.data(), a.quantised = quantised.data(), a.y = y.data();
  if (work * steps <= 16 * kWork) return kernel.run(&a, 0, steps);
  kernel.run(&a, 0, 1);
  kernel.run(&a, steps - 1, steps);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes(data, size);
  const uint8_t options = bytes.byte();
  EpLinear a{};
  a.rows = bytes.size(), a.in = bytes.size(), a.out = bytes.size(), a.threads = bytes.size();
  a.activation = options % 8 ? options % 3 : bytes.size();
  if (ep_linear_refuses(&a)) return 0;
  static const auto all = kernels(ep_linear_kernel, {"avx512vnni", "avxvnni", "avx512", "avx2",
                                                     "sse2", "neon_i8mm", "neon_dot", "neon"});
  for (const EpLinearKernel* kernel : all) run(*kernel, a, options & 128, bytes);
  return 0;
}
