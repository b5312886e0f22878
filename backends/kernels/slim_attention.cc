// Slim attention for one instruction set; compiled once for each (EP_ISA names it).
//
// Two passes over cache-sized blocks instead of flash tiling: token lists are short, so the scores
// of a few query rows over all keys stay in L1, and nothing has to be rescaled.
//
//   pack   K of a head, transposed into panels, times scale x log2(e); V, where that pays
//   score  rows x panel outer products over head_dim; dot products with the last few keys
//   weigh  mask, maximum, 2^(s - max), sum
//   mix    rows x head_dim outer products over keys, divided by the sum
#include "slim_attention.h"

#include "attention_tiles.h"

namespace {

// Scores of as many tiles as stay below this are worked on together: 32 tokens take 12% less.
constexpr int kScores = 4096;
// Values are read where they are (16 tokens take 6% less), unless more tiles than this read them
// from rows a page apart, which share cache sets.
constexpr int kReadInPlace = 4, kPage = 4096 / sizeof(float);
// Keys are split where there are no more queries than this (on two threads, 8 queries of 2,048 keys
// take 0.5 to 0.6 of the time, 16, whose rows can be split, 0.85), into parts of at least so many.
constexpr int kFewQueries = 24, kLeastKeys = 256;
constexpr int kAligned = 16;  // floats in a cache line

INLINE float* aligned(float* from) {
  const uintptr_t line = kAligned * sizeof(float);
  return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(from) + line - 1) / line * line);
}
INLINE int larger_of(int a, int b) { return a > b ? a : b; }
INLINE int repeat_of(const EpAttention& a) { return a.heads / a.kv_heads; }

INLINE int64_t q_width(const EpAttention& a) { return a.heads * a.head_dim; }
INLINE int64_t q_row(const EpAttention& a) { return a.q_row ? a.q_row : q_width(a); }
INLINE int64_t k_row(const EpAttention& a) { return a.k_row ? a.k_row : a.kv_heads * a.head_dim; }
INLINE int64_t v_row(const EpAttention& a) { return a.v_row ? a.v_row : a.kv_heads * a.head_dim; }

INLINE bool is_half(const EpAttention& a) { return a.type == EP_FLOAT16; }
INLINE const void* beyond(const EpAttention& a, const void* from, int64_t numbers) {
  return static_cast<const char*>(from) + numbers * (is_half(a) ? sizeof(Half) : sizeof(float));
}

INLINE int real_keys(const EpAttention& a, int batch) {
  if (!a.lengths) return a.keys;
  return smaller(a.keys, larger_of(0, a.lengths[batch]));
}

// How a call is cut into steps, blocks and tiles, and where its workspace has what.
struct Plan {
  int tiles, rows, longer;  // tiles of ``rows`` query rows; the first ``longer`` have one more
  int block;                // tiles whose scores are made together
  int parts, steps;         // steps are (batch, kv head, part of the tiles)
  int stride;               // floats from a row of scores to the next
  bool in_place;            // values are read where they are
  int width;                // floats of a row of half queries, widened
  size_t scores, values, rows_at, floats;  // where these start, and the end; keys come first

  explicit Plan(const EpAttention& a) {
    tiles = ceil_div(a.queries, kRows);
    rows = tiles ? a.queries / tiles : 0;
    longer = a.queries - tiles * rows;
    // An odd number of vectors: rows that are a power of two apart would share cache sets.
    stride = round_up(a.keys, kLanes) | kLanes;
    width = is_half(a) ? round_up(a.head_dim, kLanes) : 0;
    block = larger_of(1, smaller(tiles, kScores / (kRows * larger_of(stride, width))));
    const int heads = a.batch * a.kv_heads;
    parts = smaller(tiles, ceil_div(larger_of(1, a.threads), larger_of(1, heads)));
    steps = heads * parts;
    in_place = !is_half(a) && a.head_dim >= kLanes &&
               (tiles * repeat_of(a) <= kReadInPlace || v_row(a) < kPage);
    scores = static_cast<size_t>(round_up(a.keys, kLanes)) * a.head_dim;
    values = scores + static_cast<size_t>(block) * kRows * stride;
    rows_at = values;
    if (!in_place) rows_at += static_cast<size_t>(a.keys) * round_up(a.head_dim, kLanes);
    floats = rows_at + static_cast<size_t>(block) * kRows * width;
  }
  // The first row of a tile: 17 rows go as 9 + 8, never as many and one alone.
  int row(int tile) const { return tile * rows + smaller(tile, longer); }
};

// A head, its keys packed.
struct Head {
  const EpAttention& a;
  const Plan& plan;
  int batch, h, real;  // of its keys, the first ``real``
  const float *packed, *values;
  int64_t value_row;
  float *scores, *rows;  // of a block
  float* kept;  // the largest score of each row, then its factor: null where all keys are read

  int keys(int end) const { return a.causal ? smaller(real, end) : real; }
  // Where a query, and its outputs, begin.
  int64_t q(int query) const {
    return (static_cast<int64_t>(batch) * a.queries + query) * q_row(a) + h * a.head_dim;
  }
  int64_t out(int query) const {
    return (static_cast<int64_t>(batch) * a.queries + query) * q_width(a) + h * a.head_dim;
  }
  const float* mask(int query) const {
    if (!a.mask) return nullptr;
    return a.mask + batch * a.mask_batch + h * a.mask_head + query * a.mask_query;
  }
};

// Queries of a block and where their outputs go, both as floats.
struct Rows {
  const float* q;
  float* out;
  int64_t q_row, out_row;  // floats from a row to the next
};

// Half ones are widened. What a part of the keys leaves is never half.
Rows rows_of(const Head& head, int first, int count) {
  const EpAttention& a = head.a;
  const int width = head.plan.width;
  float* out = head.kept || !is_half(a) ? static_cast<float*>(a.out) + head.out(first) : head.rows;
  const int64_t out_row = out == head.rows ? width : q_width(a);
  if (!is_half(a)) return {static_cast<const float*>(a.q) + head.q(first), out, q_row(a), out_row};
  for (int r = 0; r < count; ++r)
    widen(static_cast<const Half*>(a.q) + head.q(first + r), a.head_dim, head.rows + r * width);
  return {head.rows, out, width, out_row};
}

void narrow_rows(const Head& head, int first, int count) {
  for (int r = 0; r < count; ++r)
    narrow(head.rows + r * head.plan.width, head.a.head_dim,
           static_cast<Half*>(head.a.out) + head.out(first + r));
}

template <int R>
INLINE void score(int rows, const Head& head, int first, const Rows& at, float* scores) {
  if (rows == R)
    score_rows<R>(at.q, at.q_row, head.packed, head.a.head_dim, head.keys(first + R), head.real,
                  scores, head.plan.stride);
  else if constexpr (R > 1)
    score<R - 1>(rows, head, first, at, scores);
}

template <int R>
INLINE void mix(int rows, const Head& head, int first, const Rows& at, const float* weights,
                const float* inverse) {
  if (rows == R)
    mix_rows<R>(weights, head.plan.stride, head.values, head.value_row, head.keys(first + R),
                head.a.head_dim, inverse, at.out, at.out_row);
  else if constexpr (R > 1)
    mix<R - 1>(rows, head, first, at, weights, inverse);
}

// Masks are added, and what comes after a causal query is hidden.
void mask_rows(const Head& head, int first, int rows, int padded, float* scores) {
  const int stride = head.plan.stride;
  for (int r = 0; head.a.mask && r < rows; ++r)
    add_mask(scores + r * stride, head.mask(first + r), head.keys(first + r + 1));
  for (int r = 0; head.a.causal && r < rows; ++r)
    hide(scores + r * stride, head.keys(first + r + 1), padded);
}

// ``tops`` gets the largest score of each of up to kLanes rows, of which ``kept`` keeps a copy.
void find_tops(int count, int padded, float* scores, int stride, float* tops, float* kept) {
  Vec most[kLanes] = {};
  for (int r = 0; r < count; ++r) most[r] = largest(scores + r * stride, padded);
  const Vec top = whole_above(folded(most, larger));
  store(tops, top);
  if (kept) store_some(kept, top, count);
  if (!any((top > kLargestTop) | (top < -kLargestTop))) return;
  for (int r = 0; r < count; ++r)
    if (!(tops[r] <= kLargestTop && tops[r] >= -kLargestTop))
      tops[r] = lowered(scores + r * stride, padded, tops[r]);
}

// Their scores become weights; ``factors``, until now their tops, what they are still to be
// multiplied by.
void weigh_rows(int count, int padded, float* scores, int stride, float* factors) {
  Vec totals[kLanes] = {};
  for (int r = 0; r < count; ++r) totals[r] = weigh(scores + r * stride, padded, splat(factors[r]));
  const Vec all = folded(totals, [](Vec x, Vec y) { return x + y; });
  store(factors, select(all == 0.0f, Vec{}, 1.0f / all));
}

void add_received(const Head& head, int query, const float* weights, float inverse,
                  float* received) {
  const EpAttention& a = head.a;
  const float weight = a.query_weights ? a.query_weights[head.batch * a.queries + query] : 1.0f;
  for (int j = 0; j < head.keys(query + 1); ++j) received[j] += weights[j] * (inverse * weight);
}

// The rows of tiles ``tile`` to ``last``, a block.
void attend(const Head& head, int tile, int last, float* received) {
  const Plan& plan = head.plan;
  const int first = plan.row(tile), rows = plan.row(last) - first, stride = plan.stride;
  float factors[kScores / kLanes + kRows + kLanes];
  const Rows whole = rows_of(head, first, rows);
  const auto from = [&](int r) {
    return Rows{whole.q + r * whole.q_row, whole.out + r * whole.out_row, whole.q_row,
                whole.out_row};
  };
  for (int t = tile; t < last; ++t) {
    const int row = plan.row(t), r = row - first;
    score<kRows>(plan.row(t + 1) - row, head, row, from(r), head.scores + r * stride);
  }
  // Each step goes through all rows: in one loop, every row would wait for its own sums.
  const int padded = round_up(head.keys(first + rows), kLanes);
  mask_rows(head, first, rows, padded, head.scores);
  float* kept = head.kept ? head.kept + head.h * head.a.queries + first : nullptr;
  for (int r = 0; r < rows; r += kLanes)
    find_tops(smaller(kLanes, rows - r), padded, head.scores + r * stride, stride, factors + r,
              kept ? kept + r : nullptr);
  for (int r = 0; r < rows; r += kLanes)
    weigh_rows(smaller(kLanes, rows - r), padded, head.scores + r * stride, stride, factors + r);
  for (int r = 0; kept && r < rows; ++r) kept[head.a.heads * head.a.queries + r] = factors[r];
  for (int r = 0; received && r < rows; ++r)
    add_received(head, first + r, head.scores + r * stride, factors[r], received);
  for (int t = tile; t < last; ++t) {
    const int row = plan.row(t), r = row - first;
    mix<kRows>(plan.row(t + 1) - row, head, row, from(r), head.scores + r * stride, factors + r);
  }
  if (whole.out == head.rows) narrow_rows(head, first, rows);
}

template <class Number>
void pack(const EpAttention& a, const Plan& plan, int64_t first, int64_t column, int real,
          float* workspace) {
  const Number *k = static_cast<const Number*>(a.k), *v = static_cast<const Number*>(a.v);
  pack_keys(k + first * k_row(a) + column, k_row(a), real, a.head_dim, a.scale * kLog2E, workspace);
  if (!plan.in_place)
    pack_values(v + first * v_row(a) + column, v_row(a), real, a.head_dim,
                round_up(a.head_dim, kLanes), workspace + plan.values);
}

void run_step(const EpAttention& a, const Plan& plan, int step, float* kept, float* workspace) {
  const int part = step % plan.parts, pair = step / plan.parts;
  const int group = pair % a.kv_heads, batch = pair / a.kv_heads;
  const int real = real_keys(a, batch);
  const int64_t first = static_cast<int64_t>(batch) * a.keys, column = group * a.head_dim;
  Head head{a,
            plan,
            batch,
            0,
            real,
            workspace,
            workspace + plan.values,
            round_up(a.head_dim, kLanes),
            workspace + plan.scores,
            workspace + plan.rows_at,
            kept};
  if (plan.in_place) {
    head.values = static_cast<const float*>(a.v) + first * v_row(a) + column;
    head.value_row = v_row(a);
  }
  if (is_half(a))
    pack<Half>(a, plan, first, column, real, workspace);
  else
    pack<float>(a, plan, first, column, real, workspace);
  float* received = a.received ? a.received + static_cast<int64_t>(step) * a.keys : nullptr;
  for (int j = 0; received && j < a.keys; ++j) received[j] = 0.0f;
  const int repeat = repeat_of(a), end = plan.tiles * (part + 1) / plan.parts;
  for (head.h = group * repeat; head.h < (group + 1) * repeat; ++head.h)
    for (int t = plan.tiles * part / plan.parts; t < end; t += plan.block)
      attend(head, t, smaller(end, t + plan.block), received);
}

// Where a call has fewer key-value heads than threads, and few queries, its keys are split. A part
// is a call of its own: of one head and some keys, its outputs beside those of the other parts.
struct Split {
  const EpAttention& a;
  int parts, keys;  // in how many parts; most keys of one. One part: not split

  explicit Split(const EpAttention& call) : a(call), parts(1), keys(call.keys) {
    const int heads = a.batch * a.kv_heads;
    if (!heads || !a.queries || a.queries > kFewQueries || a.causal || a.received) return;
    parts = larger_of(1, smaller(a.threads / heads, a.keys / kLeastKeys));
    keys = round_up(ceil_div(a.keys, parts), kLanes);
  }
  int steps() const { return a.batch * a.kv_heads * parts; }
  int rows() const { return repeat_of(a) * a.queries; }
  // What a part leaves: the outputs of its rows, their largest scores, their factors.
  int64_t floats() const { return int64_t{rows()} * (a.head_dim + 2); }
  float* values(int step) const { return a.parts + step * floats(); }
  float* kept(int step) const { return values(step) + int64_t{rows()} * a.head_dim; }

  // ``length`` gets the keys that the part has, and must stay.
  EpAttention part(int step, int32_t* length) const {
    const int pair = step / parts, group = pair % a.kv_heads, batch = pair / a.kv_heads;
    const int real = real_keys(a, batch), each = round_up(ceil_div(real, parts), kLanes);
    const int first = smaller(real, step % parts * each);
    const int64_t column = int64_t{group} * a.head_dim, head = int64_t{group} * repeat_of(a);
    const int64_t key = int64_t{batch} * a.keys + first;
    *length = smaller(each, real - first);
    EpAttention p{};  // a copy would call memcpy
    p.batch = p.kv_heads = p.threads = 1, p.heads = repeat_of(a);
    p.queries = a.queries, p.keys = keys, p.lengths = length, p.head_dim = a.head_dim;
    p.scale = a.scale, p.type = a.type;
    p.q_row = q_row(a), p.k_row = k_row(a), p.v_row = v_row(a);
    p.q = beyond(a, a.q, int64_t{batch} * a.queries * p.q_row + head * a.head_dim);
    p.k = beyond(a, a.k, key * p.k_row + column);
    p.v = beyond(a, a.v, key * p.v_row + column);
    if (a.mask) p.mask = a.mask + batch * a.mask_batch + head * a.mask_head + first;
    p.mask_head = a.mask_head, p.mask_query = a.mask_query;
    p.out = values(step);
    return p;
  }
};

INLINE bool is_split(const EpAttention& a) { return a.parts && Split(a).parts > 1; }

// One row, in whole vectors, out of what the parts of its keys, ``step`` on, made of it.
void merge_row(const Split& split, int step, int row, float* out) {
  const int parts = split.parts, dim = split.a.head_dim;
  float top = -__FLT_MAX__, total = 0.0f;
  for (int p = 0; p < parts; ++p) {
    const float other = split.kept(step + p)[row];
    top = other > top ? other : top;
  }
  for (int p = 0; p < parts; ++p) {
    float* kept = split.kept(step + p) + row;
    float& factor = kept[split.rows()];  // becomes the part's weight
    const float below = exp2_below(splat(kept[0] - top), Vec{})[0];
    factor = factor == 0.0f ? 0.0f : below / factor;
    total += factor;
  }
  const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
  for (int c = 0; c < dim; c += kLanes) {
    Vec sums{};
    for (int p = 0; p < parts; ++p) {
      const float* values = split.values(step + p) + int64_t{row} / split.a.queries * dim;
      values += int64_t{row} % split.a.queries * repeat_of(split.a) * dim;
      sums += load_some(values + c, dim - c) * split.kept(step + p)[split.rows() + row];
    }
    store(out + c, sums * inverse);
  }
}

void merge(const EpAttention* a) {
  if (!is_split(*a)) return;
  const Split split(*a);
  const int repeat = repeat_of(*a);
  for (int pair = 0; pair < a->batch * a->kv_heads; ++pair)
    for (int row = 0; row < split.rows(); ++row) {
      const int64_t query = int64_t{pair / a->kv_heads} * a->queries + row % a->queries;
      const int64_t head = pair % a->kv_heads * repeat + row / a->queries;
      const int64_t place = query * q_width(*a) + head * a->head_dim;
      float whole[EP_MAX_HEAD_DIM + kLanes];
      merge_row(split, pair * split.parts, row, whole);
      if (is_half(*a))
        narrow(whole, a->head_dim, static_cast<Half*>(a->out) + place);
      else
        for (int c = 0; c < a->head_dim; ++c) static_cast<float*>(a->out)[place + c] = whole[c];
    }
}

size_t parts_bytes(const EpAttention* a) {
  const Split split(*a);
  return split.parts > 1 ? split.steps() * split.floats() * sizeof(float) : 0;
}

int32_t steps_of(const EpAttention* a) { return is_split(*a) ? Split(*a).steps() : Plan(*a).steps; }

// A part of the keys needs no more than all.
size_t workspace_of(const EpAttention* a) { return (Plan(*a).floats + kAligned) * sizeof(float); }

void run_parts(const EpAttention& a, int first, int last, float* workspace) {
  const Split split(a);
  for (int step = first; step < last; ++step) {
    int32_t length;
    const EpAttention part = split.part(step, &length);
    run_step(part, Plan(part), 0, split.kept(step), workspace);
  }
}

void run(const EpAttention* a, int32_t first, int32_t last, void* workspace) {
  float* memory = aligned(static_cast<float*>(workspace));
  if (is_split(*a)) return run_parts(*a, first, last, memory);
  const Plan plan(*a);
  for (int step = first; step < last; ++step) run_step(*a, plan, step, nullptr, memory);
}

int64_t peak(int64_t rounds) {
  // Enough sums to hide the latency of every core we know: 4 cycles, two or four a cycle.
  constexpr int kSums = kRegisters == 32 ? 20 : 12;
  Vec sums[kSums];
  UNROLLED for (int i = 0; i < kSums; ++i) sums[i] = splat(1.0f + i);
  Vec x = splat(0.999f);
  const Vec y = splat(1e-3f);
  // As tiles do it: a product added to a sum, which on Arm would else be a copy and a product. Of
  // known numbers the product would be made once, and only added.
  for (int64_t round = 0; round < rounds; ++round) UNROLLED for (int i = 0; i < kSums; ++i) {
      unknown(x);
      sums[i] += x * y;
    }
  Vec all{};
  UNROLLED for (int i = 0; i < kSums; ++i) all += sums[i];
  // The sums are read, so that they are computed.
  return sum(all)[0] == 0.0f ? 0 : rounds * kSums * kLanes * 2;
}

}  // namespace

extern "C" const EpAttentionKernel EP_JOIN(ep_attention_, EP_ISA) = {
    EP_STRING(EP_ISA), kLanes, steps_of, workspace_of, run, parts_bytes, merge, peak};
