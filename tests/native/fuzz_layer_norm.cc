// Any call of layer normalisation is refused, or stays inside tensors of the sizes it names: also
// at the largest ones, of which the first and the last row are run.
#include "bytes.h"
#include "kernels/layer_norm.h"

namespace {

// Of one run, in numbers, so that thousands of inputs take seconds.
constexpr int kWork = 1 << 16;
void run(const EpNormKernel& kernel, EpNorm a, uint8_t options, Bytes bytes) {
  const Wide count = Wide(a.rows) * a.width;
  // Half floats end where half of the bytes do.
  const Wide number = a.type == EP_FLOAT16 ? 2 : 4;
  auto x = numbers<uint16_t>(count * number / 2, bytes);
  auto residual = numbers<uint16_t>(count * number / 2, bytes);
  auto weight = numbers<float>(a.width, bytes), bias = numbers<float>(a.width, bytes);
  Guarded<uint16_t> out(x->size()), sum(x->size());
  a.x = x->data(), a.weight = weight->data(), a.bias = bias->data(), a.out = out.data();
  if (options & 1) a.residual = residual->data();
  if (options & 2) a.sum = sum.data();
  if (options & 4) a.out = options & 1 ? residual->data() : x->data();
  if (count <= kWork) return kernel.run(&a, 0, a.rows);
  kernel.run(&a, 0, 1);
  kernel.run(&a, a.rows - 1, a.rows);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes(data, size);
  const uint8_t options = bytes.byte();
  EpNorm a{};
  a.type = bytes.one_in(3) ? EP_FLOAT16 : EP_FLOAT32;
  a.rows = bytes.size(), a.width = bytes.size();
  const uint32_t eps = bytes.word();
  memcpy(&a.eps, &eps, sizeof eps);
  if (ep_norm_refuses(&a) || a.width > kWork) return 0;
  static const auto all = kernels(ep_norm_kernel, {"avx512", "avx2", "sse2", "neon"});
  for (const EpNormKernel* kernel : all) run(*kernel, a, options, bytes);
  return 0;
}
