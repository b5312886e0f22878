// Layer normalisation of a residual sum: (s - mean) / sqrt(variance + eps) weight + bias, with
// s = x + residual.
//
// Stateless and free of libc; rows in any order and on any thread. Tensors are row-major,
// [rows, width], of floats; all but weight and bias may be half floats, which are computed with as
// floats. A row with NaN or infinity becomes NaN, as in PyTorch.
#ifndef EDGEPRUNE_LAYER_NORM_H
#define EDGEPRUNE_LAYER_NORM_H

#include "public.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  int32_t rows, width;
  int32_t type;  // of x, residual, sum and out
  float eps;
  const void* x;
  const void* residual;  // null: nothing is added
  const float* weight;   // [width]
  const float* bias;     // [width]
  void* sum;             // x + residual, for networks that normalise first; null: not wanted
  void* out;             // may be x or residual
} EpNorm;

typedef struct {
  const char* name;  // "avx512", "neon"...
  int32_t lanes;     // floats in a vector
  void (*run)(const EpNorm*, int32_t first_row, int32_t last_row);
} EpNormKernel;

// Null when these sizes are valid, else the reason why not.
EP_PUBLIC const char* ep_norm_refuses(const EpNorm*);

// The fastest kernel for this processor, or the one of that name if it can run here, else null.
EP_PUBLIC const EpNormKernel* ep_norm_kernel(const char* name);

// What the kernels compute, said plainly; for tests, and in no library of ours.
EP_PUBLIC void ep_norm_reference(const EpNorm*);

#ifdef __cplusplus
}
#endif
#endif
