// FULLY_CONNECTED with int8 weights, a scale for each output, on float32: x W' + bias.
//
// Not a composite: what a composite has inside for other runtimes would compute in float32, 12
// times slower than this operator of theirs. The weights are constants of the file; their form for
// the kernel is made once. x is quantised in the first phase, row by row, and multiplied in the
// second.
#include "op.h"
#include "system.h"

namespace {

// Found once: asking the processor takes 20 us and more in a virtual machine.
const EpLinearKernel* const kKernel = ep_linear_kernel(nullptr);
// Where it was measured to beat XNNPACK's.
const bool kWins = !strcmp(kKernel->name, "avx512vnni");
// Against attention in float32, per operation; measured with AVX-512 VNNI.
constexpr double kSpeed = 5;

enum { kActivation, kKeepDims, kFormat };

bool is_constant(const TfLiteTensor& tensor) {
  return tensor.allocation_type == kTfLiteMmapRo && has_memory(tensor);
}

// A scale for each output; null when they are quantised in another way.
const float* scales_of(const TfLiteTensor& weights, int outputs) {
  if (weights.quantization.type != kTfLiteAffineQuantization || !weights.quantization.params)
    return nullptr;
  const auto& by = *static_cast<TfLiteAffineQuantization*>(weights.quantization.params);
  if (!by.scale || by.scale->size != outputs || by.quantized_dimension != 0) return nullptr;
  for (int i = 0; by.zero_point && i < by.zero_point->size; ++i)
    if (by.zero_point->data[i]) return nullptr;
  return by.scale->data;
}

const char* read_weights(const Tensors& t, EpLinear* linear) {
  const TfLiteTensor& weights = *t.inputs[1];
  if (weights.type != kTfLiteInt8 || !weights.dims || weights.dims->size != 2)
    return "weights that are not int8 of rank 2";
  linear->out = weights.dims->data[0];
  if (weights.dims->data[1] != linear->in) return "weights for another number of inputs";
  // Before anything of that size is read.
  if (const char* reason = ep_linear_refuses(linear)) return reason;
  if (!scales_of(weights, linear->out)) return "weights without a scale for each output";
  if (t.input_count == 3 && !is_row(*t.inputs[2], linear->out)) return "a bias of another size";
  for (int i = 1; i < t.input_count; ++i)
    if (!is_constant(*t.inputs[i])) return "weights that are no constants";
  return nullptr;
}

const char* call(const Attributes& attributes, const Tensors& t, int32_t threads, Call* call) {
  if (!kWins) return "on this processor XNNPACK's is as fast";
  if (t.input_count != 2 && t.input_count != 3) return "wanted 2 or 3 inputs";
  if (t.output_count != 1) return "wanted one output";
  const double* number = attributes.numbers;
  if (number[kActivation] > EP_RELU || number[kFormat]) return "an unknown activation or format";
  EpLinear* linear = &call->linear;
  *linear = EpLinear{};
  linear->activation = static_cast<int32_t>(number[kActivation]);
  linear->threads = threads;
  const char* reason = read_rows(*t.inputs[0], &linear->rows, &linear->in);
  if (!reason) reason = read_weights(t, linear);
  if (reason) return reason;
  linear->packed = t.packed;
  linear->y = static_cast<float*>(t.outputs[0]->data);
  call->x = static_cast<const float*>(t.inputs[0]->data);
  call->steps[0] = linear->rows;
  call->steps[1] = kKernel->steps(linear);
  call->work = 2.0 / kSpeed * linear->rows * linear->in * linear->out;
  call->shared_bytes = kKernel->quantised_bytes(linear->rows, linear->in);
  const TfLiteIntArray& dims = *t.inputs[0]->dims;
  call->outputs[0] = number[kKeepDims] ? dims_of(dims, dims.size - 1, linear->out)
                                       : Dims{2, {linear->rows, linear->out}};
  return nullptr;
}

void run(const Call& call, int phase, int32_t first, int32_t last, const Workspace& workspace) {
  EpLinear linear = call.linear;
  if (phase == 0) {
    kKernel->quantise(call.x, linear.rows, linear.in, first, last, workspace.shared);
  } else {
    linear.quantised = workspace.shared;
    kKernel->run(&linear, first, last);
  }
}

size_t packed_bytes(const Call& call) {
  return kKernel->packed_bytes(call.linear.in, call.linear.out);
}

void pack(const Call& call, const Tensors& t, void* packed) {
  const void* bias = t.input_count == 3 ? t.inputs[2]->data : nullptr;
  kKernel->pack(call.linear.in, call.linear.out, static_cast<const int8_t*>(t.inputs[1]->data),
                scales_of(*t.inputs[1], call.linear.out), static_cast<const float*>(bias), packed);
}

}  // namespace

const Op kFullyConnected = {"FULLY_CONNECTED", {}, call, run, packed_bytes, pack};
