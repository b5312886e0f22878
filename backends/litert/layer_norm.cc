// edgeprune.layer_norm: x, weight, bias and perhaps a residual -> the norm of their sum, and
// perhaps that sum.
#include "op.h"

namespace {

// Found once: asking the processor takes 20 us and more in a virtual machine.
const EpNormKernel* const kKernel = ep_norm_kernel(nullptr);

bool same_shape(const TfLiteTensor& one, const TfLiteTensor& other) {
  if (!is_float(one, other.dims->size)) return false;
  for (int i = 0; i < other.dims->size; ++i)
    if (one.dims->data[i] != other.dims->data[i]) return false;
  return true;
}

const char* call(const Attributes& attributes, const Tensors& t, int32_t, Call* call) {
  if (t.input_count != 3 && t.input_count != 4) return "wanted 3 or 4 inputs";
  const bool sums = t.input_count == 4;
  if (t.output_count > 1 && !sums) return "a sum of one";
  EpNorm* norm = &call->norm;
  *norm = EpNorm{};
  if (const char* reason = read_rows(*t.inputs[0], &norm->rows, &norm->width)) return reason;
  if (!is_row(*t.inputs[1], norm->width) || !is_row(*t.inputs[2], norm->width))
    return "weight or bias that is not float32 and as wide as x";
  if (sums && !same_shape(*t.inputs[3], *t.inputs[0]))
    return "a residual that is not float32 of the shape of x";
  norm->eps = static_cast<float>(attributes.numbers[0]);
  if (!(norm->eps >= 0)) return "a negative eps";
  norm->x = static_cast<const float*>(t.inputs[0]->data);
  norm->weight = static_cast<const float*>(t.inputs[1]->data);
  norm->bias = static_cast<const float*>(t.inputs[2]->data);
  if (sums) norm->residual = static_cast<const float*>(t.inputs[3]->data);
  norm->out = static_cast<float*>(t.outputs[0]->data);
  if (t.output_count > 1) norm->sum = static_cast<float*>(t.outputs[1]->data);
  call->steps[0] = norm->rows;
  call->work = 8.0 * norm->rows * norm->width;
  for (Dims& dims : call->outputs) dims = dims_of(*t.inputs[0]->dims, -1, 0);
  return ep_norm_refuses(norm);
}

void run(const Call& call, int, int32_t first, int32_t last, const Workspace&) {
  kKernel->run(&call.norm, first, last);
}

}  // namespace

const Op kLayerNorm = {"edgeprune.layer_norm", {"eps"}, call, run, nullptr, nullptr};
