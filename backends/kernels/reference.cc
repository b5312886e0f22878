// What the kernels compute, said plainly and in double precision. They may use libc: only tests
// compile them.
#include <math.h>
#include <stdlib.h>

#include "layer_norm.h"
#include "linear_int8.h"
#include "slim_attention.h"

extern "C" void ep_attention_reference(const EpAttention* a) {
  const int64_t d = a->head_dim, rows = a->heads * d, kv_rows = a->kv_heads * d;
  const int64_t q_row = a->q_row ? a->q_row : rows;
  const int64_t k_row = a->k_row ? a->k_row : kv_rows, v_row = a->v_row ? a->v_row : kv_rows;
  double* received = (double*)calloc((size_t)a->batch * a->keys + 1, sizeof(double));
  for (int64_t b = 0; b < a->batch; ++b)
    for (int64_t h = 0; h < a->heads; ++h)
      for (int64_t i = 0; i < a->queries; ++i) {
        const int64_t group = h / (a->heads / a->kv_heads);
        const float* q = a->q + (b * a->queries + i) * q_row + h * d;
        const float* k = a->k + b * a->keys * k_row + group * d;
        const float* v = a->v + b * a->keys * v_row + group * d;
        const float* mask =
            a->mask ? a->mask + b * a->mask_batch + h * a->mask_head + i * a->mask_query : 0;
        int64_t keys = a->lengths && a->lengths[b] < a->keys ? a->lengths[b] : a->keys;
        if (a->causal && i + 1 < keys) keys = i + 1;
        double sum = 0, top = -INFINITY, out[EP_MAX_HEAD_DIM] = {0};
        for (int pass = 0; pass < 3; ++pass)
          for (int64_t j = 0; j < keys; ++j) {
            double s = 0;
            for (int64_t c = 0; c < d; ++c) s += (double)q[c] * k[j * k_row + c];
            s = s * a->scale + (mask ? mask[j] : 0);
            if (pass == 0) {
              if (!(s <= top)) top = s;
              continue;
            }
            const double weight = exp(s - (top == -INFINITY ? 0 : top));
            if (pass == 2) {
              const float counts = a->query_weights ? a->query_weights[b * a->queries + i] : 1;
              received[b * a->keys + j] += sum == 0 ? 0 : weight / sum * counts;
              continue;
            }
            sum += weight;
            for (int64_t c = 0; c < d; ++c) out[c] += weight * v[j * v_row + c];
          }
        for (int64_t c = 0; c < d; ++c)
          a->out[(b * a->queries + i) * rows + h * d + c] = sum == 0 ? 0 : out[c] / sum;
      }
  for (int64_t n = 0; a->received && n < (int64_t)a->batch * a->keys; ++n)
    a->received[n] = received[n];
  free(received);
}

extern "C" void ep_linear_reference(const EpLinear* a, const int8_t* weights, const float* scales,
                                    const float* bias) {
  for (int64_t r = 0; r < a->rows; ++r) {
    const float* x = (const float*)a->quantised + r * a->in;
    float low = 0, high = 0;
    for (int k = 0; k < a->in; ++k) low = fminf(low, x[k]), high = fmaxf(high, x[k]);
    const float scale = high * (1.0f / 255) - low * (1.0f / 255);
    const float factor = scale > 1e-36f ? 1.0f / scale : 0.0f;
    const int zero = (int)(0.5f - low * factor);
    for (int64_t o = 0; o < a->out; ++o) {
      int64_t sum = 0;
      for (int k = 0; k < a->in; ++k)
        sum += (fmin(rintf(x[k] * factor) + zero, 255) - zero) * weights[o * a->in + k];
      double y = (double)sum * scale * scales[o] + (bias ? bias[o] : 0);
      if (a->activation == EP_RELU) y = fmax(y, 0);
      if (a->activation == EP_GELU) y *= 0.5 * erfc(-y / sqrt(2.0));
      a->y[r * a->out + o] = y;
    }
  }
}

extern "C" void ep_norm_reference(const EpNorm* a) {
  for (int64_t start = 0; start < (int64_t)a->rows * a->width; start += a->width) {
    double mean = 0, variance = 0;
    for (int pass = 0; pass < 3; ++pass)
      for (int64_t i = start; i < start + a->width; ++i) {
        const double s = (double)a->x[i] + (a->residual ? a->residual[i] : 0);
        if (pass == 0) mean += s / a->width;
        if (pass == 1) variance += (s - mean) * (s - mean) / a->width;
        if (pass < 2) continue;
        const double y = (s - mean) / sqrt(variance + a->eps);
        a->out[i] = y * a->weight[i - start] + a->bias[i - start];
        if (a->sum) a->sum[i] = s;
      }
  }
}
