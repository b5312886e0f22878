// What the headers of all kernels share.
#ifndef EDGEPRUNE_PUBLIC_H
#define EDGEPRUNE_PUBLIC_H

#include <stddef.h>
#include <stdint.h>

#define EP_PUBLIC __attribute__((visibility("default")))

// What tensors hold; half floats are IEEE's.
enum { EP_FLOAT32, EP_FLOAT16 };

// Sizes within these overflow nothing; a tensor holds at most EP_MAX_NUMBERS elements.
enum { EP_MAX_THREADS = 1 << 12, EP_MAX_NUMBERS = 1 << 30 };

#endif
