// edgeprune.token_select: x, scores and perhaps pinned -> the kept tokens of x.
#include "op.h"

namespace {

enum { kKeep, kAxis };

const char* read_sizes(const Attributes& attributes, const TfLiteTensor& x, EpTokenSelect* select) {
  const double keep = attributes.numbers[kKeep], axis = attributes.numbers[kAxis];
  if (!is_whole(keep) || !is_whole(axis)) return "keep or axis that is no whole number";
  int32_t rows, width;
  if (const char* reason = read_rows(x, &rows, &width)) return reason;
  if (axis >= x.dims->size) return "an axis that x does not have";
  *select = EpTokenSelect{};
  select->tokens = x.dims->data[static_cast<int>(axis)];
  select->keep = static_cast<int32_t>(keep);
  int64_t outer = 1, inner = 1;
  for (int i = 0; i < x.dims->size; ++i)
    if (i != axis) (i < axis ? outer : inner) *= x.dims->data[i];
  if (outer > EP_MAX_NUMBERS || inner > EP_MAX_NUMBERS) return "too many numbers";
  select->outer = static_cast<int32_t>(outer);
  select->inner = static_cast<int32_t>(inner);
  return ep_token_select_refuses(select);
}

const char* call(const Attributes& attributes, const Tensors& t, int32_t, Call* call) {
  if (t.input_count != 2 && t.input_count != 3) return "wanted 2 or 3 inputs";
  if (t.output_count != 1) return "wanted one output";
  EpTokenSelect* select = &call->select;
  if (const char* reason = read_sizes(attributes, *t.inputs[0], select)) return reason;
  for (int i = 1; i < t.input_count; ++i) {
    const TfLiteTensor& scores = *t.inputs[i];
    if (!is_float(scores, 2) || scores.dims->data[0] != 1 || scores.dims->data[1] != select->tokens)
      return "scores that are not float32 [1, tokens]";
  }
  select->x = static_cast<const float*>(t.inputs[0]->data);
  select->scores = static_cast<const float*>(t.inputs[1]->data);
  if (t.input_count == 3) select->pinned = static_cast<const float*>(t.inputs[2]->data);
  select->out = static_cast<float*>(t.outputs[0]->data);
  call->steps[0] = 1;
  call->outputs[0] =
      dims_of(*t.inputs[0]->dims, static_cast<int>(attributes.numbers[kAxis]), select->keep);
  return nullptr;
}

void run(const Call& call, int, int32_t first, int32_t last, const Workspace&) {
  if (first < last) ep_token_select(&call.select);
}

}  // namespace

const Op kTokenSelect = {"edgeprune.token_select", {"keep", "axis"}, call, run, nullptr, nullptr};
