// Which tokens go on: their scores, out of the attention that they receive, and their selection.
#ifndef EDGEPRUNE_TOKENS_H
#define EDGEPRUNE_TOKENS_H

#include "slim_attention.h"

#ifdef __cplusplus
extern "C" {
#endif

// The sizes are those of ``x`` around its dimension of tokens: [outer, tokens, inner].
typedef struct {
  int32_t outer, tokens, inner, keep;
  int32_t type;  // of x and out
  const void* x;
  const float* scores;  // [tokens]
  const float* pinned;  // [tokens], added to the scores; null: nothing is
  void* out;            // [outer, keep, inner], in the order that they had
} EpTokenSelect;

// Attention received by each key, [batch, keys], after the attention ran with ``received``: the
// sum of its parts. ``real`` [batch, keys], 1 for tokens and 0 for padding, which gets -1; null:
// all are real.
EP_PUBLIC void ep_token_scores(const EpAttention*, int32_t steps, const float* real, float* scores);

// Null when these sizes are valid, else the reason why not.
EP_PUBLIC const char* ep_token_select_refuses(const EpTokenSelect*);

// Copies the tokens of the highest scores; of equals, the first.
EP_PUBLIC void ep_token_select(const EpTokenSelect*);

#ifdef __cplusplus
}
#endif
#endif
