// What the kernels compute, said plainly and in double precision. They may use libc: only tests
// compile them.
#include <math.h>
#include <stdlib.h>

#include "layer_norm.h"
#include "linear_int8.h"
#include "slim_attention.h"

// A number of an array of floats, or of half floats.
static double number(const void* from, int64_t place, int32_t type) {
  if (type == EP_FLOAT32) return ((const float*)from)[place];
  const uint16_t bits = ((const uint16_t*)from)[place];
  const int exponent = bits >> 10 & 31, digits = bits & 1023;
  double size = exponent ? ldexp(1024 + digits, exponent - 25) : ldexp(digits, -24);
  if (exponent == 31) size = digits ? NAN : INFINITY;
  return bits & 0x8000 ? -size : size;
}

// The nearest half float: 11 digits, the last one no smaller than 2^-24.
static uint16_t half_of(double x) {
  const uint16_t sign = signbit(x) ? 0x8000 : 0;
  if (isnan(x)) return 0x7e00;
  const double size = fabs(x);
  if (size >= 65520) return sign | 0x7c00;
  const int exponent = size < 0x1p-14 ? -14 : ilogb(size);
  const int digits = (int)nearbyint(ldexp(size, 10 - exponent));
  // Where the leading digit is there, it counts as one of the exponent.
  return sign | (uint16_t)((exponent + 14) * 1024 + digits);
}

static void set_number(void* to, int64_t place, int32_t type, double x) {
  if (type == EP_FLOAT32)
    ((float*)to)[place] = x;
  else
    ((uint16_t*)to)[place] = half_of(x);
}

extern "C" void ep_attention_reference(const EpAttention* a) {
  const int64_t d = a->head_dim, rows = a->heads * d, kv_rows = a->kv_heads * d;
  const int64_t q_row = a->q_row ? a->q_row : rows;
  const int64_t k_row = a->k_row ? a->k_row : kv_rows, v_row = a->v_row ? a->v_row : kv_rows;
  double* received = (double*)calloc((size_t)a->batch * a->keys + 1, sizeof(double));
  for (int64_t b = 0; b < a->batch; ++b)
    for (int64_t h = 0; h < a->heads; ++h)
      for (int64_t i = 0; i < a->queries; ++i) {
        const int64_t group = h / (a->heads / a->kv_heads);
        const int64_t q = (b * a->queries + i) * q_row + h * d;
        const int64_t k = b * a->keys * k_row + group * d, v = b * a->keys * v_row + group * d;
        const float* mask =
            a->mask ? a->mask + b * a->mask_batch + h * a->mask_head + i * a->mask_query : 0;
        int64_t keys = a->lengths && a->lengths[b] < a->keys ? a->lengths[b] : a->keys;
        if (a->causal && i + 1 < keys) keys = i + 1;
        double sum = 0, top = -INFINITY, out[EP_MAX_HEAD_DIM] = {0};
        for (int pass = 0; pass < 3; ++pass)
          for (int64_t j = 0; j < keys; ++j) {
            double s = 0;
            for (int64_t c = 0; c < d; ++c)
              s += number(a->q, q + c, a->type) * number(a->k, k + j * k_row + c, a->type);
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
            for (int64_t c = 0; c < d; ++c)
              out[c] += weight * number(a->v, v + j * v_row + c, a->type);
          }
        for (int64_t c = 0; c < d; ++c)
          set_number(a->out, (b * a->queries + i) * rows + h * d + c, a->type,
                     sum == 0 ? 0 : out[c] / sum);
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
        const double s =
            number(a->x, i, a->type) + (a->residual ? number(a->residual, i, a->type) : 0);
        if (pass == 0) mean += s / a->width;
        if (pass == 1) variance += (s - mean) * (s - mean) / a->width;
        if (pass < 2) continue;
        const double y = (s - mean) / sqrt(variance + a->eps);
        if (a->sum) set_number(a->sum, i, a->type, s);
        set_number(a->out, i, a->type, y * a->weight[i - start] + a->bias[i - start]);
      }
  }
}
