// The part of TFLite's C structures that an external delegate needs.
//
// No package ships the headers, so these are written after the runtime's behaviour. The layout was
// proved on x86_64 with ai-edge-litert 2.3.0 and tflite-runtime 2.14.0; fields that we never read
// stand for their size. Functions are reached through the context alone: nothing is linked.
#ifndef EDGEPRUNE_TFLITE_ABI_H
#define EDGEPRUNE_TFLITE_ABI_H

#include <stddef.h>
#include <stdint.h>

extern "C" {

typedef int TfLiteStatus;
enum { kTfLiteOk = 0, kTfLiteError = 1 };
enum { kTfLiteFloat32 = 1, kTfLiteInt8 = 9 };  // TfLiteTensor::type
enum {
  kTfLiteMmapRo = 1,
  kTfLiteArenaRw = 2,
  kTfLiteDynamic = 4
};  // TfLiteTensor::allocation_type
enum { kTfLiteDelegateFlagsAllowDynamicTensors = 1 };  // TfLiteDelegate::flags
enum { kTfLiteAffineQuantization = 1 };                // TfLiteTensor::quantization.type
enum {                                                 // TfLiteRegistration::builtin_code
  kTfLiteBuiltinFullyConnected = 9,
  kTfLiteBuiltinCustom = 32,
  kTfLiteBuiltinDelegate = 51,
  kTfLiteBuiltinStablehloComposite = 206,
};

struct TfLiteIntArray {  // malloc'ed; ResizeTensor and a node's temporaries take it over
  int size;
  int data[];
};

struct TfLiteFloatArray {
  int size;
  float data[];
};

struct TfLiteAffineQuantization {  // TfLiteTensor::quantization.params
  TfLiteFloatArray* scale;
  TfLiteIntArray* zero_point;
  int32_t quantized_dimension;
};

struct TfLiteDelegate;

struct TfLiteTensor {
  int type;
  void* data;
  TfLiteIntArray* dims;
  struct {
    float scale;
    int32_t zero_point;
  } params;
  int allocation_type;
  size_t bytes;
  const void* allocation;
  const char* name;
  TfLiteDelegate* delegate;
  int buffer_handle;
  bool data_is_stale, is_variable;
  struct {
    int type;
    void* params;
  } quantization;
  void* sparsity;
  const TfLiteIntArray* dims_signature;  // -1 where a size is open
};

struct TfLiteNode {
  TfLiteIntArray *inputs, *outputs, *intermediates, *temporaries;
  void *user_data, *builtin_data;
  const void* custom_initial_data;
  int custom_initial_data_size;
  TfLiteDelegate* delegate;
  bool might_have_side_effect;
};

struct TfLiteContext;

struct TfLiteRegistration {
  void* (*init)(TfLiteContext*, const char* buffer, size_t length);
  void (*free)(TfLiteContext*, void* user_data);
  TfLiteStatus (*prepare)(TfLiteContext*, TfLiteNode*);
  TfLiteStatus (*invoke)(TfLiteContext*, TfLiteNode*);
  const char* (*profiling_string)(const TfLiteContext*, const TfLiteNode*);
  int32_t builtin_code;
  const char* custom_name;
  int version;
  void* registration_external;  // this and what follows: newer than 2.14, zero
  void* async_kernel;
  uint64_t inplace_operator;
};

struct TfLiteDelegateParams {  // what a delegate's registration gets in ``init``
  TfLiteDelegate* delegate;
  TfLiteIntArray *nodes_to_replace, *input_tensors, *output_tensors;
};

struct TfLiteContext {
  size_t tensors_size;
  TfLiteStatus (*GetExecutionPlan)(TfLiteContext*, TfLiteIntArray**);
  TfLiteTensor* tensors;  // moves when tensors are added
  void* impl_;
  TfLiteStatus (*ResizeTensor)(TfLiteContext*, TfLiteTensor*, TfLiteIntArray*);
  void (*ReportError)(TfLiteContext*, const char*, ...);
  TfLiteStatus (*AddTensors)(TfLiteContext*, int count, int* first);
  TfLiteStatus (*GetNodeAndRegistration)(TfLiteContext*, int, TfLiteNode**, TfLiteRegistration**);
  TfLiteStatus (*ReplaceNodeSubsetsWithDelegateKernels)(TfLiteContext*, TfLiteRegistration,
                                                        const TfLiteIntArray*, TfLiteDelegate*);
  int recommended_num_threads;
  // More follows, unused.
};

struct TfLiteDelegate {
  void* data_;
  TfLiteStatus (*Prepare)(TfLiteContext*, TfLiteDelegate*);
  void *CopyFromBufferHandle, *CopyToBufferHandle, *FreeBufferHandle;
  int64_t flags;
  void* opaque_delegate_builder;
};

struct TfLiteStablehloCompositeParams {
  const char* name;
  int32_t subgraph_index;
  const uint8_t* attributes;  // a FlexBuffer map
  size_t attributes_size;
};

struct TfLiteFullyConnectedParams {
  int activation;      // 0: none, 1: ReLU
  int weights_format;  // 0: rows of inputs
  bool keep_num_dims, asymmetric_quantize_inputs;
  int quantized_bias_type;
};

}  // extern "C"
#endif
