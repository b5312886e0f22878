// What the delegate knows of an operator, which is all that the operators' files tell it.
#ifndef EDGEPRUNE_LITERT_OP_H
#define EDGEPRUNE_LITERT_OP_H

#include "../kernels/layer_norm.h"
#include "../kernels/slim_attention.h"
#include "flexbuffer.h"
#include "tflite_abi.h"

// A node's tensors as they are now. Before the first ``prepare`` they have no data.
struct Tensors {
  static constexpr int kMostInputs = 4, kMostOutputs = 2;
  const TfLiteTensor *inputs[kMostInputs], *outputs[kMostOutputs];
  int input_count, output_count;
};

struct Attributes {
  static constexpr int kMost = 4;
  double numbers[kMost];  // as many, and in the order, as Op::attributes
};

// What a node computes: steps that threads may share.
struct Call {
  union {
    EpAttention attention;
    EpNorm norm;
  };
  int32_t steps;
  double flops;
  size_t workspace_bytes;      // of one thread
  const TfLiteIntArray* dims;  // of each output
};

struct Op {
  const char* name;                           // of the composite, or of the custom op
  const char* attributes[Attributes::kMost];  // all of them are needed, and no other is known
  // Fills in the call; returns null, or the reason why these tensors cannot be taken.
  const char* (*call)(const Attributes&, const Tensors&, int32_t threads, Call*);
  void (*run)(const Call&, int32_t first, int32_t last, void* workspace);
};

extern const Op kSlimAttention, kLayerNorm;

static inline bool is_float(const TfLiteTensor& tensor, int rank) {
  return tensor.type == kTfLiteFloat32 && tensor.dims && tensor.dims->size == rank;
}

static inline bool is_whole(double number) {
  return number >= 0 && number <= 1 << 30 && number == static_cast<int32_t>(number);
}

#endif
