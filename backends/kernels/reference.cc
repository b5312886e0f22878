// What slim attention computes, said plainly and in double precision. It may use libc: only tests
// compile it.
#include <math.h>
#include <stdlib.h>

#include "slim_attention.h"

extern "C" void ep_attention_reference(const EpAttention* a) {
  const int64_t d = a->head_dim, rows = a->heads * d, kv_rows = a->kv_heads * d;
  double* received = (double*)calloc((size_t)a->batch * a->keys + 1, sizeof(double));
  for (int64_t b = 0; b < a->batch; ++b)
    for (int64_t h = 0; h < a->heads; ++h)
      for (int64_t i = 0; i < a->queries; ++i) {
        const float* q = a->q + (b * a->queries + i) * rows + h * d;
        const int64_t start = b * a->keys * kv_rows + h / (a->heads / a->kv_heads) * d;
        const float* mask =
            a->mask ? a->mask + b * a->mask_batch + h * a->mask_head + i * a->mask_query : 0;
        int64_t keys = a->lengths && a->lengths[b] < a->keys ? a->lengths[b] : a->keys;
        if (a->causal && i + 1 < keys) keys = i + 1;
        double sum = 0, top = -INFINITY, out[EP_MAX_HEAD_DIM] = {0};
        for (int pass = 0; pass < 3; ++pass)
          for (int64_t j = 0; j < keys; ++j) {
            double s = 0;
            for (int64_t c = 0; c < d; ++c) s += (double)q[c] * a->k[start + j * kv_rows + c];
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
            for (int64_t c = 0; c < d; ++c) out[c] += weight * a->v[start + j * kv_rows + c];
          }
        for (int64_t c = 0; c < d; ++c)
          a->out[(b * a->queries + i) * rows + h * d + c] = sum == 0 ? 0 : out[c] / sum;
      }
  for (int64_t n = 0; a->received && n < (int64_t)a->batch * a->keys; ++n)
    a->received[n] = received[n];
  free(received);
}
