#include "tokens.h"

namespace {

// A number that is larger where the score is; -0 and 0 are the same. NaNs have a place too.
uint32_t rank_of(const EpTokenSelect& a, int32_t token) {
  const float score = a.scores[token] + (a.pinned ? a.pinned[token] : 0.0f);
  uint32_t bits;
  __builtin_memcpy(&bits, &score, sizeof bits);
  return bits >> 31 ? ~bits : bits | 1u << 31;
}

// The keep-th highest rank, bit by bit. Sorting would need memory.
uint32_t lowest_kept(const EpTokenSelect& a) {
  uint32_t lowest = 0;
  for (uint32_t bit = 1u << 31; bit; bit >>= 1) {
    int32_t count = 0;
    for (int32_t t = 0; t < a.tokens; ++t) count += rank_of(a, t) >= (lowest | bit);
    if (count >= a.keep) lowest |= bit;
  }
  return lowest;
}

template <class Number>
void copy(const EpTokenSelect& a, int32_t token, int32_t place) {
  const int64_t inner = a.inner;
  for (int64_t o = 0; o < a.outer; ++o) {
    const Number* from = static_cast<const Number*>(a.x) + (o * a.tokens + token) * inner;
    Number* to = static_cast<Number*>(a.out) + (o * a.keep + place) * inner;
    for (int64_t i = 0; i < inner; ++i) to[i] = from[i];
  }
}

}  // namespace

extern "C" void ep_token_scores(const EpAttention* a, int32_t steps, const float* real,
                                float* scores) {
  const int32_t parts = a->batch ? steps / a->batch : 0;
  for (int32_t b = 0; b < a->batch; ++b) {
    const int64_t row = static_cast<int64_t>(b) * a->keys;
    const float* part = a->received + row * parts;
    for (int32_t j = 0; j < a->keys; ++j) scores[row + j] = 0.0f;
    for (int32_t p = 0; p < parts; ++p, part += a->keys)
      for (int32_t j = 0; j < a->keys; ++j) scores[row + j] += part[j];
    for (int32_t j = 0; real && j < a->keys; ++j)
      scores[row + j] = scores[row + j] * real[row + j] + (real[row + j] - 1.0f);
  }
}

extern "C" const char* ep_token_select_refuses(const EpTokenSelect* a) {
  if (a->outer < 0 || a->inner < 0) return "a negative size";
  if (a->tokens > EP_MAX_TOKENS) return "more than 2^20 tokens";
  if (a->keep < 1 || a->keep > a->tokens) return "keep outside 1 to the number of tokens";
  const int64_t rows = static_cast<int64_t>(a->outer) * a->tokens;
  if (rows > EP_MAX_NUMBERS || rows * a->inner > EP_MAX_NUMBERS)
    return "a tensor of more than 2^30 numbers";
  return nullptr;
}

extern "C" void ep_token_select(const EpTokenSelect* a) {
  const uint32_t lowest = lowest_kept(*a);
  int32_t equals = a->keep, place = 0;
  for (int32_t t = 0; t < a->tokens; ++t) equals -= rank_of(*a, t) > lowest;
  for (int32_t t = 0; t < a->tokens; ++t) {
    const uint32_t rank = rank_of(*a, t);
    if (rank < lowest || (rank == lowest && equals-- <= 0)) continue;
    a->type == EP_FLOAT16 ? copy<uint16_t>(*a, t, place) : copy<float>(*a, t, place);
    ++place;
  }
}
