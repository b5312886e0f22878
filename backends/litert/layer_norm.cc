// edgeprune.layer_norm: x, weight, bias and perhaps a residual -> layer norm of their sum.
#include "op.h"

namespace {

bool is_row(const TfLiteTensor& tensor, int width) {
  return is_float(tensor, 1) && tensor.dims->data[0] == width;
}

bool same_shape(const TfLiteIntArray& one, const TfLiteIntArray& other) {
  if (one.size != other.size) return false;
  for (int i = 0; i < one.size; ++i)
    if (one.data[i] != other.data[i]) return false;
  return true;
}

const char* call(const Attributes& attributes, const Tensors& t, int32_t, Call* call) {
  if (t.input_count != 3 && t.input_count != 4) return "wanted 3 or 4 inputs";
  if (t.output_count > 1 && t.input_count != 4) return "a sum of one";
  const TfLiteTensor& x = *t.inputs[0];
  if (!x.dims || x.dims->size < 1 || !is_float(x, x.dims->size)) return "x that is not float32";
  NormCall* norm = &call->norm;
  *norm = NormCall{};
  norm->width = x.dims->data[x.dims->size - 1];
  norm->rows = 1;
  for (int i = 0; i + 1 < x.dims->size; ++i) norm->rows *= x.dims->data[i];
  if (norm->rows < 1 || norm->width < 1) return "no tokens";
  if (!is_row(*t.inputs[1], norm->width) || !is_row(*t.inputs[2], norm->width))
    return "weight or bias that is not float32 and as wide as x";
  if (t.input_count == 4) {
    const TfLiteTensor& residual = *t.inputs[3];
    if (residual.type != kTfLiteFloat32 || !residual.dims || !same_shape(*residual.dims, *x.dims))
      return "a residual that is not float32 of the shape of x";
    norm->residual = static_cast<const float*>(residual.data);
  }
  norm->eps = static_cast<float>(attributes.numbers[0]);
  if (!(norm->eps >= 0)) return "a negative eps";
  norm->x = static_cast<const float*>(x.data);
  norm->weight = static_cast<const float*>(t.inputs[1]->data);
  norm->bias = static_cast<const float*>(t.inputs[2]->data);
  norm->out = static_cast<float*>(t.outputs[0]->data);
  if (t.output_count > 1) norm->sum = static_cast<float*>(t.outputs[1]->data);
  call->steps = 1;
  call->flops = 8.0 * norm->rows * norm->width;
  call->workspace_bytes = 0;
  call->dims = x.dims;
  return nullptr;
}

typedef float Vec __attribute__((vector_size(64), aligned(4), may_alias));
float total(const Vec& v) {
  float sum = 0;
  for (int i = 0; i < 16; ++i) sum += v[i];
  return sum;
}

void normalise(const NormCall& c, const float* x, const float* residual, float* out,
               float* sum_out) {
  const int64_t width = c.width;
  Vec sums{};
  float sum = 0;
  int64_t i = 0;
  auto at = [](const float* p) { return *reinterpret_cast<const Vec*>(p); };
  for (; i + 16 <= width; i += 16) {
    Vec v = at(x + i);
    if (residual) v += at(residual + i);
    *reinterpret_cast<Vec*>(out + i) = v;
    sums += v;
  }
  for (; i < width; ++i) sum += out[i] = residual ? x[i] + residual[i] : x[i];
  for (i = 0; sum_out && i < width; ++i) sum_out[i] = out[i];
  const float mean = (sum + total(sums)) / width;
  Vec squares{};
  float square = 0;
  for (i = 0; i + 16 <= width; i += 16) {
    const Vec v = at(out + i) - mean;
    squares += v * v;
  }
  for (; i < width; ++i) square += (out[i] - mean) * (out[i] - mean);
  const float factor = 1.0f / __builtin_sqrtf((square + total(squares)) / width + c.eps);
  for (i = 0; i + 16 <= width; i += 16)
    *reinterpret_cast<Vec*>(out + i) =
        (at(out + i) - mean) * factor * at(c.weight + i) + at(c.bias + i);
  for (; i < width; ++i) out[i] = (out[i] - mean) * factor * c.weight[i] + c.bias[i];
}

void run(const Call& call, int32_t, int32_t, void*) {
  const NormCall& c = call.norm;
  for (int64_t row = 0; row < c.rows; ++row)
    normalise(c, c.x + row * c.width, c.residual ? c.residual + row * c.width : nullptr,
              c.out + row * c.width, c.sum ? c.sum + row * c.width : nullptr);
}

}  // namespace

const Op kLayerNorm = {"edgeprune.layer_norm", {"eps"}, call, run};
