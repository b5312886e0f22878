// edgeprune.slim_attention: q, k, v and perhaps an additive mask -> out.
// edgeprune.slim_attention_scores: the same, the mask with which tokens are real -> out, scores.
#include "op.h"

namespace {

// Found once: asking the processor takes 20 us and more in a virtual machine.
const EpAttentionKernel* const kKernel = ep_attention_kernel(nullptr);

enum { kHeads, kKvHeads, kScale, kCausal };

const char* read_sizes(const Attributes& attributes, const Tensors& t, EpAttention* a) {
  const double* number = attributes.numbers;
  if (!is_whole(number[kHeads]) || !is_whole(number[kKvHeads]) || !is_whole(number[kCausal]))
    return "heads, kv_heads or causal that is no whole number";
  if (number[kHeads] < 1 || number[kKvHeads] < 1) return "no heads";
  const int *q = t.inputs[0]->dims->data, *k = t.inputs[1]->dims->data,
            *v = t.inputs[2]->dims->data;
  a->batch = q[0];
  a->queries = q[1];
  a->keys = k[1];
  a->heads = static_cast<int32_t>(number[kHeads]);
  a->kv_heads = static_cast<int32_t>(number[kKvHeads]);
  a->head_dim = q[2] / a->heads;
  a->scale = static_cast<float>(number[kScale]);
  a->causal = number[kCausal] != 0;
  if (q[2] % a->heads || k[2] % a->kv_heads || k[2] / a->kv_heads != a->head_dim)
    return "widths that are not heads x one head_dim";
  if (k[0] != q[0]) return "keys of another batch";
  if (v[0] != k[0] || v[1] != k[1] || v[2] != k[2]) return "values of another shape than the keys";
  if (!a->batch || !a->queries || !a->keys) return "no tokens";
  return ep_attention_refuses(a);
}

const char* read_mask(const TfLiteTensor& mask, EpAttention* a) {
  if (!is_float(mask, 4)) return "a mask that is not float32 of rank 4";
  if (mask.dims->data[3] != a->keys) return "a mask over another number of keys";
  if (!ep_attention_set_mask(a, static_cast<const float*>(mask.data), mask.dims->data))
    return "a mask that does not broadcast";
  return nullptr;
}

const char* read_call(const Attributes& attributes, const Tensors& t, int32_t threads, Call* call) {
  for (int i = 0; i < 3; ++i)
    if (!is_float(*t.inputs[i], 3)) return "q, k or v that is not float32 of rank 3";
  EpAttention* a = &call->attention;
  *a = EpAttention{};
  const char* reason = read_sizes(attributes, t, a);
  if (!reason && t.input_count > 3) reason = read_mask(*t.inputs[3], a);
  if (reason) return reason;
  a->threads = threads;
  a->q = static_cast<const float*>(t.inputs[0]->data);
  a->k = static_cast<const float*>(t.inputs[1]->data);
  a->v = static_cast<const float*>(t.inputs[2]->data);
  a->out = static_cast<float*>(t.outputs[0]->data);
  call->steps[0] = kKernel->steps(a);
  call->work = 4.0 * a->batch * a->queries * a->keys * a->heads * a->head_dim;
  call->own_bytes = kKernel->workspace_bytes(a);
  call->outputs[0] = dims_of(*t.inputs[0]->dims, -1, 0);
  return nullptr;
}

const char* call_plain(const Attributes& attributes, const Tensors& t, int32_t threads,
                       Call* call) {
  if (t.input_count != 3 && t.input_count != 4) return "wanted 3 or 4 inputs";
  if (t.output_count != 1) return "wanted one output";
  return read_call(attributes, t, threads, call);
}

const char* call_scored(const Attributes& attributes, const Tensors& t, int32_t threads,
                        Call* call) {
  if (t.input_count != 3 && t.input_count != 5) return "wanted 3 or 5 inputs";
  if (t.output_count != 2) return "wanted two outputs";
  if (const char* reason = read_call(attributes, t, threads, call)) return reason;
  const EpAttention& a = call->attention;
  if (a.queries != a.keys) return "scores of tokens that do not read each other";
  if (t.input_count == 5) {
    const TfLiteTensor& real = *t.inputs[4];
    if (!is_float(real, 2) || real.dims->data[0] != a.batch || real.dims->data[1] != a.keys)
      return "real tokens that are not float32 [batch, tokens]";
    call->real = static_cast<const float*>(real.data);
  }
  call->scores = static_cast<float*>(t.outputs[1]->data);
  call->steps[1] = 1;
  call->shared_bytes = sizeof(float) * call->steps[0] * a.keys;
  call->outputs[1] = Dims{2, {a.batch, a.keys}};
  return nullptr;
}

void run(const Call& call, int phase, int32_t first, int32_t last, const Workspace& workspace) {
  EpAttention a = call.attention;
  const int32_t keys = ep_attention_real_keys(&a);
  if (a.batch == 1) a.lengths = &keys;
  if (call.scores) a.received = static_cast<float*>(workspace.shared);
  a.query_weights = call.real;
  if (phase == 0)
    kKernel->run(&a, first, last, workspace.own);
  else if (first < last)
    ep_token_scores(&a, call.steps[0], call.real, call.scores);
}

}  // namespace

const Op kSlimAttention = {"edgeprune.slim_attention",
                           {"heads", "kv_heads", "scale", "causal"},
                           call_plain,
                           run,
                           nullptr,
                           nullptr};
const Op kSlimAttentionScores = {"edgeprune.slim_attention_scores",
                                 {"heads", "kv_heads", "scale", "causal"},
                                 call_scored,
                                 run,
                                 nullptr,
                                 nullptr};
