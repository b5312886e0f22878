// What slim attention computes, said plainly and in double precision. It may use libc: only tests
// compile it.
#include <math.h>

#include "slim_attention.h"

extern "C" void ep_attention_reference(const EpAttention* a) {
  const int64_t d = a->head_dim, rows = a->heads * d, kv_rows = a->kv_heads * d;
  const int64_t q_row = a->q_row ? a->q_row : rows;
  const int64_t k_row = a->k_row ? a->k_row : kv_rows, v_row = a->v_row ? a->v_row : kv_rows;
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
        for (int pass = 0; pass < 2; ++pass)
          for (int64_t j = 0; j < keys; ++j) {
            double s = 0;
            for (int64_t c = 0; c < d; ++c) s += (double)q[c] * k[j * k_row + c];
            s = s * a->scale + (mask ? mask[j] : 0);
            if (!pass) {
              if (!(s <= top)) top = s;
              continue;
            }
            const double weight = exp(s - (top == -INFINITY ? 0 : top));
            sum += weight;
            for (int64_t c = 0; c < d; ++c) out[c] += weight * v[j * v_row + c];
          }
        for (int64_t c = 0; c < d; ++c)
          a->out[(b * a->queries + i) * rows + h * d + c] = sum == 0 ? 0 : out[c] / sum;
      }
}
