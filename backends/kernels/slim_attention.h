// Slim attention: softmax(scale q k' + mask) v as projections write it, without transposes.
//
// Stateless and free of libc: no allocation, no threads. A caller asks for the number of steps
// and the bytes of workspace, then runs the steps in any order, each thread with a workspace of
// its own. Tensors are row-major, [batch, tokens, heads x head_dim], of floats; q, k, v and out may
// be half floats, which are computed with as floats.
#ifndef EDGEPRUNE_SLIM_ATTENTION_H
#define EDGEPRUNE_SLIM_ATTENTION_H

#include "public.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { EP_MAX_HEAD_DIM = 128, EP_MAX_TOKENS = 1 << 20 };

typedef struct {
  int32_t batch, queries, keys;
  int32_t heads,
      kv_heads;      // heads is a multiple of kv_heads; query head h reads h / (heads / kv_heads)
  int32_t head_dim;  // 1 to EP_MAX_HEAD_DIM
  float scale;
  int32_t causal;   // query i reads keys 0 to i
  int32_t threads;  // that will run the steps; more steps are made where there are few heads
  int32_t type;     // of q, k, v and out
  // Numbers from a token to the next, as in one tensor of queries, keys and values; 0: no gap.
  int32_t q_row, k_row, v_row;
  const void* q;  // [batch, queries, heads x head_dim]
  const void* k;  // [batch, keys, kv_heads x head_dim]
  const void* v;  // [batch, keys, kv_heads x head_dim]
  // Added to the scaled scores; null: nothing is. Strides in floats below 2^31, 0 where it
  // broadcasts; the keys are contiguous.
  const float* mask;
  int64_t mask_batch, mask_head, mask_query;
  const int32_t* lengths;  // [batch] keys that are real, from the first on; null: all
  void* out;               // [batch, queries, heads x head_dim]
  // Attention received by each key, over all heads and queries: [steps, keys] parts, which the
  // caller adds up per batch (steps of one batch follow each other); null: not wanted.
  float* received;
  const float* query_weights;  // [batch, queries] of each query in ``received``; null: all 1
  // Memory of ``parts_bytes``, so that keys are split among steps where queries are few; null: they
  // are not. Set before steps are counted; ``merge`` comes after the last one.
  float* parts;
} EpAttention;

typedef struct {
  const char* name;  // "avx512", "neon"...
  int32_t lanes;     // floats in a vector
  int32_t (*steps)(const EpAttention*);
  size_t (*workspace_bytes)(const EpAttention*);  // of one thread
  void (*run)(const EpAttention*, int32_t first, int32_t last, void* workspace);
  size_t (*parts_bytes)(const EpAttention*);  // 0: keys are not split
  void (*merge)(const EpAttention*);          // does nothing where they were not
  // Multiplies and adds in registers alone, for benchmarks to be a share of; returns how many
  // floating-point operations that was.
  int64_t (*peak)(int64_t rounds);
} EpAttentionKernel;

// Null when these sizes are valid, else the reason why not.
EP_PUBLIC const char* ep_attention_refuses(const EpAttention*);

// The mask's strides, from its sizes [batch or 1, heads or 1, queries or 1, keys]; false when it
// has others than this call, whose sizes are known.
EP_PUBLIC int32_t ep_attention_set_mask(EpAttention*, const float* mask, const int32_t sizes[4]);

// Keys up to the last one that a mask over keys alone lets through (batch 1), for ``lengths``:
// files of one size are run on shorter texts, and a key that 1e8 is taken from adds nothing.
EP_PUBLIC int32_t ep_attention_real_keys(const EpAttention*);

// The fastest kernel for this processor, or the one of that name if it can run here, else null.
EP_PUBLIC const EpAttentionKernel* ep_attention_kernel(const char* name);

// What the kernels compute, said plainly; for tests, and in no library of ours. ``received`` is
// [batch, keys] here.
EP_PUBLIC void ep_attention_reference(const EpAttention*);

#ifdef __cplusplus
}
#endif
#endif
