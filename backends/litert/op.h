// What the delegate knows of an operator, which is all that the operators' files tell it.
#ifndef EDGEPRUNE_LITERT_OP_H
#define EDGEPRUNE_LITERT_OP_H

#include "../kernels/layer_norm.h"
#include "../kernels/linear_int8.h"
#include "../kernels/slim_attention.h"
#include "../kernels/tokens.h"
#include "flexbuffer.h"
#include "tflite_abi.h"

// A node's tensors as they are now. Before the first ``prepare`` they have no data.
struct Tensors {
  static constexpr int kMostInputs = 5, kMostOutputs = 2;
  const TfLiteTensor *inputs[kMostInputs], *outputs[kMostOutputs];
  int input_count, output_count;
  const void* packed;  // what the op made of constants
};

constexpr int kMostRank = 6;

struct Dims {
  int rank, size[kMostRank];
};

struct Attributes {
  static constexpr int kMost = 4;
  double numbers[kMost];  // as many, and in the order, as Op::attributes
};

// What a node computes: one or two phases of steps that threads may share, the second after the
// whole first.
struct Call {
  union {
    EpAttention attention;
    EpNorm norm;
    EpLinear linear;
    EpTokenSelect select;
  };
  const float* x;  // of a linear layer
  const float*
      real;  // tokens that attention scores, and where the scores go; null: none are wanted
  float* scores;
  int32_t steps[2];  // of each phase; 0: there is none
  double work;       // what takes as long as this many float32 operations of attention
  size_t shared_bytes, own_bytes;  // workspace of all threads together, and of each
  Dims outputs[Tensors::kMostOutputs];
};

struct Workspace {
  void *shared, *own;
};

struct Op {
  const char* name;                           // of the composite, or of the custom op
  const char* attributes[Attributes::kMost];  // all of them are needed, and no other is known
  // Fills in the call; returns null, or the reason why these tensors cannot be taken.
  const char* (*call)(const Attributes&, const Tensors&, int32_t threads, Call*);
  void (*run)(const Call&, int phase, int32_t first, int32_t last, const Workspace&);
  // What is made of constants, once, and read by all calls; null functions: nothing is.
  size_t (*packed_bytes)(const Call&);
  void (*pack)(const Call&, const Tensors&, void* packed);
};

// Composites and custom ops of ours, and a builtin operator.
extern const Op kSlimAttention, kSlimAttentionScores, kLayerNorm, kTokenSelect, kFullyConnected;

static inline bool is_float(const TfLiteTensor& tensor, int rank) {
  return tensor.type == kTfLiteFloat32 && tensor.dims && tensor.dims->size == rank;
}

static inline bool is_row(const TfLiteTensor& tensor, int width) {
  return is_float(tensor, 1) && tensor.dims->data[0] == width;
}

// Whether there is memory for these dimensions, all at least 1. Sparse constants have less than for
// their own, and what a tensor had when sizes were planned may not be what it has now.
static inline bool has_memory(const TfLiteTensor& tensor, int rank, const int* dims) {
  size_t bytes = tensor.type == kTfLiteFloat32 ? sizeof(float) : 1;
  for (int i = 0; i < rank; ++i) bytes *= static_cast<size_t>(dims[i]);
  return tensor.data && tensor.bytes >= bytes;
}
static inline bool has_memory(const TfLiteTensor& tensor, const Dims& dims) {
  return has_memory(tensor, dims.rank, dims.size);
}
static inline bool has_memory(const TfLiteTensor& tensor) {
  return has_memory(tensor, tensor.dims->size, tensor.dims->data);
}

// All dimensions but the last are rows; null, or the reason why not.
static inline const char* read_rows(const TfLiteTensor& x, int32_t* rows, int32_t* width) {
  if (x.type != kTfLiteFloat32 || !x.dims || x.dims->size < 1) return "x that is not float32";
  if (x.dims->size > kMostRank) return "x of too many dimensions";
  for (int i = 0; i < x.dims->size; ++i)
    if (x.dims->data[i] < 1) return "no tokens";
  int64_t count = 1;
  for (int i = 0; i + 1 < x.dims->size; ++i)
    if ((count *= x.dims->data[i]) > INT32_MAX) return "too many tokens";
  *rows = static_cast<int32_t>(count);
  *width = x.dims->data[x.dims->size - 1];
  return nullptr;
}

// Those of a tensor, but for one of them.
static inline Dims dims_of(const TfLiteIntArray& from, int axis, int size) {
  Dims dims{from.size, {}};
  for (int i = 0; i < from.size; ++i) dims.size[i] = i == axis ? size : from.data[i];
  return dims;
}

static inline bool is_whole(double number) {
  return number >= 0 && number <= 1 << 30 && number == static_cast<int32_t>(number);
}

#endif
