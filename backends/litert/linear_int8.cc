// edgeprune.linear_int8: x, int8 weights, their scales and perhaps a bias -> act(x W' + bias).
//
// The weights are constants of the file; their form for the kernel is made once. x is quantised
// in the first phase, row by row, and multiplied in the second.
#include "op.h"

namespace {

// Found once: asking the processor takes 20 us and more in a virtual machine.
const EpLinearKernel* const kKernel = ep_linear_kernel(nullptr);
// Against attention in float32, per operation; measured with AVX-512 VNNI.
constexpr double kSpeed = 5;

bool is_constant(const TfLiteTensor& tensor) {
  return tensor.allocation_type == kTfLiteMmapRo && has_memory(tensor);
}

const char* read_weights(const Tensors& t, EpLinear* linear) {
  const TfLiteTensor& weights = *t.inputs[1];
  if (weights.type != kTfLiteInt8 || !weights.dims || weights.dims->size != 2)
    return "weights that are not int8 of rank 2";
  linear->out = weights.dims->data[0];
  if (weights.dims->data[1] != linear->in) return "weights for another number of inputs";
  if (const char* reason = ep_linear_refuses(linear)) return reason;
  for (int i = 1; i < t.input_count; ++i) {
    if (i > 1 && !is_row(*t.inputs[i], linear->out)) return "scales or a bias of another size";
    if (!is_constant(*t.inputs[i])) return "weights that are no constants";
  }
  return nullptr;
}

const char* call(const Attributes& attributes, const Tensors& t, int32_t threads, Call* call) {
  if (t.input_count != 3 && t.input_count != 4) return "wanted 3 or 4 inputs";
  if (t.output_count != 1) return "wanted one output";
  if (!is_whole(attributes.numbers[0])) return "an unknown activation";
  EpLinear* linear = &call->linear;
  *linear = EpLinear{};
  linear->activation = static_cast<int32_t>(attributes.numbers[0]);
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
  set_dims(*t.inputs[0]->dims, linear->out, call);
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
  const void* bias = t.input_count == 4 ? t.inputs[3]->data : nullptr;
  kKernel->pack(call.linear.in, call.linear.out, static_cast<const int8_t*>(t.inputs[1]->data),
                static_cast<const float*>(t.inputs[2]->data), static_cast<const float*>(bias),
                packed);
}

}  // namespace

const Op kLinearInt8 = {"edgeprune.linear_int8", {"activation"}, call, run, packed_bytes, pack};
