// Attention as plain loops, for one head after the other: what kernels are to be faster than.
// q, k, v, out are [tokens, heads x head_dim]; scores has room for one row of tokens.
#include <math.h>

void plain_attention(const float* q, const float* k, const float* v, float* out, float* scores,
                     int tokens, int heads, int head_dim) {
  const int row = heads * head_dim;
  const float scale = 1.0f / sqrtf((float)head_dim);
  for (int h = 0; h < heads; ++h)
    for (int i = 0; i < tokens; ++i) {
      const float* query = q + i * row + h * head_dim;
      float* to = out + i * row + h * head_dim;
      float top = -1e30f, sum = 0.0f;
      for (int j = 0; j < tokens; ++j) {
        float dot = 0.0f;
        for (int c = 0; c < head_dim; ++c) dot += query[c] * k[j * row + h * head_dim + c];
        scores[j] = dot * scale;
        top = scores[j] > top ? scores[j] : top;
      }
      for (int j = 0; j < tokens; ++j) sum += scores[j] = expf(scores[j] - top);
      for (int c = 0; c < head_dim; ++c) to[c] = 0.0f;
      for (int j = 0; j < tokens; ++j)
        for (int c = 0; c < head_dim; ++c)
          to[c] += scores[j] / sum * v[j * row + h * head_dim + c];
    }
}
