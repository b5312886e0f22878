// A linear layer in 8 bits: act(x W' + bias), x quantised at run time for each row by itself.
//
// Weights are int8, symmetric (-127 to 127), with a scale for each output. x becomes unsigned 8
// bits with a scale and a zero point for each row; sums of products are exact in int32, and the
// same on every instruction set. Stateless and free of libc: weights are packed once, x is
// quantised once for all layers that read it, then the steps run in any order and on any thread.
// Buffers lie at multiples of 4 bytes; at multiples of 64 they are read fastest.
#ifndef EDGEPRUNE_LINEAR_INT8_H
#define EDGEPRUNE_LINEAR_INT8_H

#include "public.h"

#ifdef __cplusplus
extern "C" {
#endif

// More inputs could overflow int32.
enum { EP_MAX_LINEAR_IN = 65536 };

typedef enum {
  EP_NO_ACTIVATION,
  EP_RELU,
  EP_GELU,  // with the exact erf; absolute error below 1e-6
} EpActivation;

typedef struct {
  int32_t rows, in, out;
  int32_t activation;  // an EpActivation
  int32_t threads;     // that will run the steps
  const void* quantised;
  const void* packed;
  float* y;  // [rows, out]
} EpLinear;

typedef struct {
  const char* name;  // "avx512vnni", "neon_dot"...
  int32_t lanes;     // outputs in a vector
  size_t (*packed_bytes)(int32_t in, int32_t out);
  // weights [out, in], scales [out], bias [out] or null
  void (*pack)(int32_t in, int32_t out, const int8_t* weights, const float* scales,
               const float* bias, void* packed);
  size_t (*quantised_bytes)(int32_t rows, int32_t in);
  // Rows from first_row up to last_row of x [rows, in]. A row with NaN or infinity gives NaN.
  void (*quantise)(const float* x, int32_t rows, int32_t in, int32_t first_row, int32_t last_row,
                   void* quantised);
  int32_t (*steps)(const EpLinear*);
  void (*run)(const EpLinear*, int32_t first, int32_t last);
  // Dot products in registers alone, for benchmarks to be a share of; returns how many
  // multiplications and additions that was.
  int64_t (*peak)(int64_t rounds);
} EpLinearKernel;

// Null when these sizes are valid, else the reason why not.
EP_PUBLIC const char* ep_linear_refuses(const EpLinear*);

// The fastest kernel for this processor, or the one of that name if it can run here, else null.
EP_PUBLIC const EpLinearKernel* ep_linear_kernel(const char* name);

// What the kernels compute, said plainly; for tests, and in no library of ours. ``packed`` is
// null, ``quantised`` is x [rows, in].
EP_PUBLIC void ep_linear_reference(const EpLinear*, const int8_t* weights, const float* scales,
                                   const float* bias);

#ifdef __cplusplus
}
#endif
#endif
