// Slim attention for one instruction set; compiled once for each (EP_ISA names it).
//
// Two passes over cache-sized blocks instead of flash tiling: token lists are short, so the scores
// of a few query rows over all keys stay in L1, and nothing has to be rescaled.
//
//   pack   K of a head, transposed into panels, times scale x log2(e); V of a head, contiguous
//   score  rows x panel outer products over head_dim
//   weigh  mask, maximum, 2^(s - max), sum
//   mix    rows x head_dim outer products over keys, divided by the sum
#include "slim_attention.h"

#include "kernel.h"

namespace {

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kNothing = -__builtin_huge_valf();
// A tile of kRows x kVectors accumulators, with as many vectors and one broadcast beside them.
constexpr int kVectors = kRegisters == 32 ? 3 : 2;
constexpr int kRows = kRegisters == 32 ? 8 : 6;
constexpr int kPanel = kVectors * kLanes;
// Keys added up in a row before their sum joins the others: 1,000 at once lose 2.3e-6.
constexpr int kSummed = 128;

// One head's workspace; ``keys`` and ``dim`` are padded to whole vectors.
struct Head {
  float *keys, *values, *scores;
  int width, stride;  // floats from a value row, and from a score row, to the next

  static size_t floats(const EpAttention& a) {
    const size_t keys = round_up(a.keys, kPanel), dim = round_up(a.head_dim, kLanes);
    return keys * a.head_dim + keys * dim + kRows * keys;
  }
  Head(const EpAttention& a, float* workspace)
      : width(round_up(a.head_dim, kLanes)), stride(round_up(a.keys, kPanel)) {
    keys = workspace;
    values = keys + static_cast<size_t>(stride) * a.head_dim;
    scores = values + static_cast<size_t>(stride) * width;
  }
};

// One stage of a transposition: in two rows that are kHalf apart, the blocks of kHalf lanes off the
// diagonal change places.
template <int kHalf, int... kLane>
INLINE void exchange(Vec& low, Vec& high, Lanes<kLane...>) {
  const Vec a = low, b = high;
  low = __builtin_shufflevector(a, b, (kLane & kHalf ? kLanes + kLane - kHalf : kLane)...);
  high = __builtin_shufflevector(a, b, (kLane & kHalf ? kLanes + kLane : kLane + kHalf)...);
}

template <int kHalf>
INLINE void transpose_from(Vec (&rows)[kLanes]) {
  UNROLLED for (int i = 0; i < kLanes; ++i) {
    if (!(i & kHalf)) exchange<kHalf>(rows[i], rows[i + kHalf], UpTo<kLanes>::Each());
  }
  if constexpr (kHalf > 1) transpose_from<kHalf / 2>(rows);
}

// Panel after panel of kPanel keys (the last one narrower), each [head_dim, keys of the panel].
INLINE void pack_keys(const float* k, int64_t row, int count, int dim, float factor, float* to) {
  const int padded = round_up(count, kLanes);
  for (int first = 0; first < padded; first += kPanel) {
    const int width = smaller(kPanel, padded - first);
    for (int key = first; key < first + width; key += kLanes) {
      float* column = to + key - first;
      const int real = smaller(kLanes, count - key);
      int c = 0;
      for (; real == kLanes && c + kLanes <= dim; c += kLanes) {
        Vec rows[kLanes];
        UNROLLED for (int i = 0; i < kLanes; ++i) rows[i] = load(k + (key + i) * row + c);
        transpose_from<kLanes / 2>(rows);
        UNROLLED for (int i = 0; i < kLanes; ++i) store(column + (c + i) * width, rows[i] * factor);
      }
      for (; c < dim; ++c)
        for (int i = 0; i < kLanes; ++i)
          column[c * width + i] = i < real ? k[(key + i) * row + c] * factor : 0.0f;
    }
    to += static_cast<size_t>(width) * dim;
  }
}

INLINE void pack_values(const float* v, int64_t row, int count, int dim, int width, float* to) {
  for (int key = 0; key < count; ++key, v += row, to += width) {
    int c = 0;
    for (; c + kLanes <= dim; c += kLanes) store(to + c, load(v + c));
    for (; c < width; ++c) to[c] = c < dim ? v[c] : 0.0f;
  }
}

// scores[r, 0..V) = q[r] . the first V vectors of a panel that is ``width`` keys wide
template <int R, int V>
INLINE void score_tile(const float* q, int64_t row, const float* panel, int width, int dim,
                       float* scores, int stride) {
  Vec sums[R][V] = {};
  for (int c = 0; c < dim; ++c, panel += width) {
    Vec keys[V];
    UNROLLED for (int n = 0; n < V; ++n) keys[n] = load(panel + n * kLanes);
    UNROLLED for (int r = 0; r < R; ++r) {
      const Vec x = splat(q[r * row + c]);
      UNROLLED for (int n = 0; n < V; ++n) sums[r][n] += x * keys[n];
    }
  }
  UNROLLED for (int r = 0; r < R; ++r) UNROLLED for (int n = 0; n < V; ++n)
      store(scores + r * stride + n * kLanes, sums[r][n]);
}

// out[r, 0..V) = weights[r] . values, divided by the row's sum
template <int R, int V>
INLINE void mix_tile(const float* weights, int stride, const float* values, int width, int keys,
                     const float* inverse, float* out, int64_t row, int columns) {
  Vec totals[R][V] = {};
  for (int key = 0; key < keys;) {
    Vec sums[R][V] = {};
    for (const int end = smaller(keys, key + kSummed); key < end; ++key, values += width) {
      Vec value[V];
      UNROLLED for (int n = 0; n < V; ++n) value[n] = load(values + n * kLanes);
      UNROLLED for (int r = 0; r < R; ++r) {
        const Vec x = splat(weights[r * stride + key]);
        UNROLLED for (int n = 0; n < V; ++n) sums[r][n] += x * value[n];
      }
    }
    UNROLLED for (int r = 0; r < R; ++r) UNROLLED for (int n = 0; n < V; ++n) totals[r][n] +=
        sums[r][n];
  }
  for (int r = 0; r < R; ++r) UNROLLED for (int n = 0; n < V; ++n) {
      const Vec x = totals[r][n] * inverse[r];
      float* to = out + r * row + n * kLanes;
      if (columns >= (n + 1) * kLanes)
        store(to, x);
      else
        for (int i = 0; i < columns - n * kLanes; ++i) to[i] = x[i];
    }
}

// Brings scores down whose largest one is too large for exp2_below, or is -inf: then there is
// nothing to read, all weights become 0, and no NaN is made. Returns what is now the largest.
Vec lowered(float* scores, int padded, Vec top) {
  if (top[0] == kNothing) return Vec{};
  for (int j = 0; j < padded; j += kLanes) store(scores + j, load(scores + j) - top);
  return Vec{};
}

// A row's mask is added; the largest score, rounded up, is returned. Keys from ``real`` up to
// ``padded`` get -inf.
INLINE Vec top_of(float* scores, int real, int padded, const float* mask) {
  Vec most = splat(kNothing);
  int j = 0;
  if (mask) {
    for (; j + kLanes <= real; j += kLanes) {
      const Vec x = load(scores + j) + load(mask + j) * kLog2E;
      store(scores + j, x);
      most = larger(x, most);
    }
  } else {
    for (; j + kLanes <= real; j += kLanes) most = larger(load(scores + j), most);
  }
  for (; j < padded; j += kLanes) {
    Vec added{};
    for (int i = 0; mask && i < real - j; ++i) added[i] = mask[j + i];
    const Vec x = load(scores + j) + added * kLog2E;
    store(scores + j, select(iota() < real - j, x, splat(kNothing)));
    most = larger(load(scores + j), most);
  }
  const Vec top = whole_above(largest(most));
  return top[0] <= kLargestTop && top[0] >= -kLargestTop ? top : lowered(scores, padded, top);
}

// A row of scores becomes weights that still lack the division by their sum; returned are its
// parts.
INLINE Vec weigh(float* scores, int padded, Vec top) {
  Vec total{};
  for (int j = 0; j < padded; j += kLanes) {
    const Vec x = exp2_below(load(scores + j), top);
    store(scores + j, x);
    total += x;
  }
  return total;
}

// The first ``keys`` of ``packed`` ones.
template <int R>
INLINE void score_rows(const float* q, int64_t row, const Head& head, int dim, int keys,
                       int packed) {
  const float* panel = head.keys;
  for (int first = 0; first < keys; first += kPanel, panel += static_cast<size_t>(kPanel) * dim) {
    const int width = smaller(kPanel, round_up(packed, kLanes) - first);
    float* scores = head.scores + first;
    if (kVectors > 2 && keys - first > 2 * kLanes)
      score_tile<R, kVectors>(q, row, panel, width, dim, scores, head.stride);
    else if (keys - first > kLanes)
      score_tile<R, 2>(q, row, panel, width, dim, scores, head.stride);
    else
      score_tile<R, 1>(q, row, panel, width, dim, scores, head.stride);
  }
}

template <int R>
INLINE void mix_rows(const Head& head, int keys, int dim, const float* inverse, float* out,
                     int64_t row) {
  int first = 0;
  // 4 vectors go as 2 + 2: one alone would leave the multipliers waiting for its sums.
  for (int left; (left = ceil_div(dim - first, kLanes)) > 0;) {
    const float* values = head.values + first;
    const int columns = dim - first;
    if (kVectors > 2 && left >= 3 && left != 4) {
      mix_tile<R, 3>(head.scores, head.stride, values, head.width, keys, inverse, out + first, row,
                     columns);
      first += 3 * kLanes;
    } else if (left >= 2) {
      mix_tile<R, 2>(head.scores, head.stride, values, head.width, keys, inverse, out + first, row,
                     columns);
      first += 2 * kLanes;
    } else {
      mix_tile<R, 1>(head.scores, head.stride, values, head.width, keys, inverse, out + first, row,
                     columns);
      first += kLanes;
    }
  }
}

// Rows ``first`` to ``first + R`` of one query head.
template <int R>
void attend(const EpAttention& a, const Head& head, int batch, int h, int first, int real,
            float* received) {
  const int64_t row = static_cast<int64_t>(a.heads) * a.head_dim;
  const int64_t place = (static_cast<int64_t>(batch) * a.queries + first) * row + h * a.head_dim;
  const int keys = a.causal ? smaller(real, first + R) : real;
  const int padded = round_up(keys, kLanes);
  score_rows<R>(a.q + place, row, head, a.head_dim, keys, real);
  Vec tops[R], totals[R];
  float inverse[R];
  // Row after row, each step on its own: in one loop, every row would wait for its own sums.
  for (int r = 0; r < R; ++r) {
    const float* mask =
        a.mask ? a.mask + batch * a.mask_batch + h * a.mask_head + (first + r) * a.mask_query
               : nullptr;
    const int own = a.causal ? smaller(keys, first + r + 1) : keys;
    tops[r] = top_of(head.scores + r * head.stride, own, padded, mask);
  }
  for (int r = 0; r < R; ++r) totals[r] = weigh(head.scores + r * head.stride, padded, tops[r]);
  for (int r = 0; r < R; ++r) {
    const float all = sum(totals[r])[0];
    inverse[r] = all == 0.0f ? 0.0f : 1.0f / all;
  }
  if (received) {
    for (int r = 0; r < R; ++r) {
      const float weight = a.query_weights ? a.query_weights[batch * a.queries + first + r] : 1.0f;
      const float* weights = head.scores + r * head.stride;
      for (int j = 0; j < keys; ++j) received[j] += weights[j] * (inverse[r] * weight);
    }
  }
  mix_rows<R>(head, keys, a.head_dim, inverse, a.out + place, row);
}

template <int R>
INLINE void attend_any(int rows, const EpAttention& a, const Head& head, int batch, int h,
                       int first, int real, float* received) {
  if (rows == R)
    attend<R>(a, head, batch, h, first, real, received);
  else if constexpr (R > 1)
    attend_any<R - 1>(rows, a, head, batch, h, first, real, received);
}

// Steps are (batch, kv head, part of the query rows).
struct Steps {
  int blocks, parts, count;

  explicit Steps(const EpAttention& a) {
    const int heads = a.batch * a.kv_heads;
    blocks = ceil_div(a.queries, kRows);
    parts = smaller(blocks, ceil_div(a.threads < 1 ? 1 : a.threads, heads < 1 ? 1 : heads));
    count = heads * parts;
  }
};

void run_step(const EpAttention& a, const Steps& steps, int step, float* workspace) {
  const int part = step % steps.parts, group = step / steps.parts % a.kv_heads;
  const int batch = step / steps.parts / a.kv_heads;
  const int real =
      a.lengths ? smaller(a.keys, a.lengths[batch] < 0 ? 0 : a.lengths[batch]) : a.keys;
  const int64_t row = static_cast<int64_t>(a.kv_heads) * a.head_dim;
  const int64_t place = static_cast<int64_t>(batch) * a.keys * row + group * a.head_dim;
  const Head head(a, workspace);
  pack_keys(a.k + place, row, real, a.head_dim, a.scale * kLog2E, head.keys);
  pack_values(a.v + place, row, real, a.head_dim, head.width, head.values);
  float* received = a.received ? a.received + static_cast<int64_t>(step) * a.keys : nullptr;
  for (int j = 0; received && j < a.keys; ++j) received[j] = 0.0f;
  const int repeat = a.heads / a.kv_heads;
  for (int h = group * repeat; h < (group + 1) * repeat; ++h) {
    for (int b = steps.blocks * part / steps.parts; b < steps.blocks * (part + 1) / steps.parts;
         ++b) {
      // Blocks of like size: 17 rows go as 6 + 6 + 5, not as 8 + 8 + 1.
      const int first = static_cast<int64_t>(a.queries) * b / steps.blocks;
      const int rows = static_cast<int64_t>(a.queries) * (b + 1) / steps.blocks - first;
      attend_any<kRows>(rows, a, head, batch, h, first, real, received);
    }
  }
}

int32_t steps_of(const EpAttention* a) { return Steps(*a).count; }

size_t workspace_of(const EpAttention* a) { return Head::floats(*a) * sizeof(float); }

void run(const EpAttention* a, int32_t first, int32_t last, void* workspace) {
  const Steps steps(*a);
  for (int step = first; step < last; ++step)
    run_step(*a, steps, step, static_cast<float*>(workspace));
}

int64_t peak(int64_t rounds) {
  // Enough sums to hide the latency of every core we know: 4 cycles, two or four a cycle.
  constexpr int kSums = kRegisters == 32 ? 20 : 12;
  Vec sums[kSums];
  UNROLLED for (int i = 0; i < kSums; ++i) sums[i] = splat(1.0f + i);
  const Vec x = splat(0.999f), y = splat(1e-3f);
  for (int64_t round = 0; round < rounds; ++round)
    UNROLLED for (int i = 0; i < kSums; ++i) sums[i] = sums[i] * x + y;
  Vec all{};
  UNROLLED for (int i = 0; i < kSums; ++i) all += sums[i];
  // The sums are read, so that they are computed.
  return sum(all)[0] == 0.0f ? 0 : rounds * kSums * kLanes * 2;
}

}  // namespace

extern "C" const EpAttentionKernel EP_JOIN(ep_attention_, EP_ISA) = {
    EP_STRING(EP_ISA), kLanes, steps_of, workspace_of, run, peak};
