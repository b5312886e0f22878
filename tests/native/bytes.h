// What fuzz harnesses share: numbers, sizes and tensors out of the fuzzer's bytes.
#ifndef EDGEPRUNE_TESTS_BYTES_H
#define EDGEPRUNE_TESTS_BYTES_H

#include <memory>
#include <vector>

#include "check.h"

// Products of sizes, before anything says that they fit.
using Wide = __int128;

// 0 when they are used up.
class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), left_(size) {}
  size_t left() const { return left_; }
  uint8_t byte() { return left_ ? (--left_, *data_++) : 0; }
  bool one_in(int n) { return byte() % n == 0; }
  uint32_t word() {
    uint32_t all = 0;
    for (int i = 0; i < 4; ++i) all = all << 8 | byte();
    return all;
  }
  int32_t few() { return 1 + byte() % 9; }
  // Small sizes mostly, powers of two and their neighbours, or anything.
  int32_t size() {
    const uint8_t kind = byte();
    if (kind < 80) return few();
    if (kind < 160) return byte() % 70;
    if (kind < 240) return static_cast<int32_t>((uint32_t{1} << byte() % 32) + byte() % 3 - 1);
    return static_cast<int32_t>(word());
  }

 private:
  const uint8_t* data_;
  size_t left_;
};

// The first numbers are any bits, the others 0.
template <class T>
std::unique_ptr<Guarded<T>> numbers(Wide count, Bytes& bytes) {
  std::unique_ptr<Guarded<T>> made(new Guarded<T>(static_cast<size_t>(count)));
  for (Wide i = 0; i < count && i < 64; ++i) {
    const uint32_t bits = bytes.word();
    memcpy(&(*made)[i], &bits, sizeof(T));
  }
  return made;
}

// Those of these names that this processor runs. Find them once: it is asked for some, which in a
// virtual machine takes longer than to run them.
template <class Kernel, size_t N>
std::vector<const Kernel*> kernels(const Kernel* (*named)(const char*),
                                   const char* const (&names)[N]) {
  std::vector<const Kernel*> found;
  for (const char* name : names)
    if (const Kernel* kernel = named(name)) found.push_back(kernel);
  return found;
}

#endif
