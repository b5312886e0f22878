// What every kernel's source begins with.
#ifndef EDGEPRUNE_KERNEL_H
#define EDGEPRUNE_KERNEL_H

#include "vector.h"

#define INLINE static inline __attribute__((always_inline))
#define INLINED __attribute__((always_inline))  // of a lambda
#define UNROLLED _Pragma("GCC unroll 20")

#define EP_STRING_OF(text) #text
#define EP_STRING(text) EP_STRING_OF(text)
#define EP_JOIN_OF(a, b) a##b
#define EP_JOIN(a, b) EP_JOIN_OF(a, b)

// Takes no instruction; but the compiler has to think that ``x`` has changed.
template <class T>
INLINE void unknown(T& x) {
#if defined(__x86_64__)
  __asm__("" : "+v"(x));
#else
  __asm__("" : "+w"(x));
#endif
}

INLINE constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
INLINE constexpr int round_up(int a, int b) { return ceil_div(a, b) * b; }
INLINE constexpr int smaller(int a, int b) { return a < b ? a : b; }

#endif
