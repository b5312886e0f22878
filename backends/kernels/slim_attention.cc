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

#include "vector.h"

namespace {

#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 20")

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kNothing = -__builtin_huge_valf();
// A tile of kRows x kVectors accumulators, with as many vectors and one broadcast beside them.
constexpr int kVectors = kRegisters == 32 ? 3 : 2;
constexpr int kRows = kRegisters == 32 ? 9 : 6;
constexpr int kPanel = kVectors * kLanes;
constexpr int kQuad = 4;  // columns beside each other in the narrow vectors of the last keys
// Keys added up in a row before their sum joins the others: 1,000 at once lose 2.3e-6.
constexpr int kSummed = 128;
// Scores of as many tiles as stay below this are worked on together: 16 tokens take 15% less.
constexpr int kScores = 2048;
// Values that so few tiles read are read where they are.
constexpr int kReadInPlace = 4;

constexpr int kAligned = 16;  // floats in a cache line

INLINE float* aligned(float* from) {
  const uintptr_t line = kAligned * sizeof(float);
  return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(from) + line - 1) / line * line);
}
INLINE int ceil_div(int a, int b) { return (a + b - 1) / b; }
INLINE int round_up(int a, int b) { return ceil_div(a, b) * b; }
INLINE int smaller(int a, int b) { return a < b ? a : b; }

// Keys in vectors that are kLanes keys wide. Up to half a vector of last keys goes into narrow
// vectors instead, kLanes / 4 keys x 4 columns: a quarter of the work, without empty lanes.
INLINE int wide_keys(int count, int dim) {
  const int rest = count % kLanes;
  return rest > kLanes / 2 || dim % kQuad ? round_up(count, kLanes) : count - rest;
}

// How the query rows are split: evenly, 17 as 9 + 8, never with one row left alone.
struct Tiles {
  int rows, count;

  explicit Tiles(const EpAttention& a) : rows(a.queries), count(ceil_div(a.queries, kRows)) {}
  int begin(int tile) const { return static_cast<int64_t>(rows) * tile / count; }
};

// One head's workspace.
struct Head {
  float *keys, *packed, *scores;
  const float* values;
  int64_t value_row;
  int stride, tiles;  // floats from a score row to the next, and tiles that are scored together

  static bool in_place(const EpAttention& a) {
    return a.head_dim >= kLanes && a.queries * (a.heads / a.kv_heads) <= kReadInPlace * kRows;
  }
  // An odd number of vectors: rows that are a power of two apart would share cache sets.
  static int stride_of(const EpAttention& a) { return round_up(a.keys, kLanes) | kLanes; }
  static int tiles_of(const EpAttention& a) {
    const int most = kScores / (kRows * stride_of(a));
    return most < 1 ? 1 : smaller(most, Tiles(a).count);
  }
  static size_t floats(const EpAttention& a) {
    const size_t keys = round_up(a.keys, kLanes), values = in_place(a) ? 0 : a.keys;
    return kAligned + keys * a.head_dim + values * round_up(a.head_dim, kLanes) +
           static_cast<size_t>(tiles_of(a)) * kRows * stride_of(a);
  }
  Head(const EpAttention& a, float* workspace) : stride(stride_of(a)), tiles(tiles_of(a)) {
    keys = aligned(workspace);
    scores = keys + static_cast<size_t>(round_up(a.keys, kLanes)) * a.head_dim;
    packed = scores + static_cast<size_t>(tiles) * kRows * stride;
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

// Lane i is what ``both`` makes of all lanes of row i.
template <int kHalf = kLanes / 2, class Both>
INLINE Vec folded(Vec (&rows)[kLanes], Both both) {
  UNROLLED for (int i = 0; i < kHalf; ++i) {
    exchange<kHalf>(rows[i], rows[i + kHalf], UpTo<kLanes>::Each());
    rows[i] = both(rows[i], rows[i + kHalf]);
  }
  if constexpr (kHalf > 1) return folded<kHalf / 2>(rows, both);
  return rows[0];
}

// Up to kLanes keys as columns, ``width`` apart; after the last key it stands in again.
INLINE void pack_wide(const float* k, int64_t row, int real, int dim, float factor, float* to,
                      int width) {
  const int last = smaller(real, kLanes) - 1;
  if (dim < kLanes) {
    for (int c = 0; c < dim; ++c)
      for (int i = 0; i < kLanes; ++i) to[c * width + i] = k[smaller(i, last) * row + c] * factor;
    return;
  }
  for (int next = 0; next < dim; next += kLanes) {
    const int c = smaller(next, dim - kLanes);
    Vec rows[kLanes];
    UNROLLED for (int i = 0; i < kLanes; ++i) rows[i] = load(k + smaller(i, last) * row + c);
    transpose_from<kLanes / 2>(rows);
    UNROLLED for (int i = 0; i < kLanes; ++i) store(to + (c + i) * width, rows[i] * factor);
  }
}

// Panel after panel of kPanel keys (the last one narrower), each [head_dim, keys of the panel];
// then the narrow vectors, each [head_dim / 4, kLanes / 4 keys, 4].
INLINE void pack_keys(const float* k, int64_t row, int count, int dim, float factor, float* to) {
  const int wide = wide_keys(count, dim);
  for (int first = 0; first < wide; first += kPanel) {
    const int width = smaller(kPanel, wide - first);
    for (int key = 0; key < width; key += kLanes)
      pack_wide(k + (first + key) * row, row, count - first - key, dim, factor, to + key, width);
    to += static_cast<size_t>(width) * dim;
  }
  for (int first = wide; first < count; first += kLanes / kQuad, to += kLanes / kQuad * dim)
    for (int i = 0; i < kLanes / kQuad; ++i) {
      const float* key = k + smaller(first + i, count - 1) * row;
      for (int c = 0; c < dim; ++c)
        to[c / kQuad * kLanes + i * kQuad + c % kQuad] = key[c] * factor;
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

// scores[r, 0..V x kLanes / 4) = q[r] . the last keys, in V narrow vectors
template <int R, int V, int... kLane>
INLINE void score_last(const float* q, int64_t row, const float* narrow, int dim, float* scores,
                       int stride, Lanes<kLane...>) {
  Vec sums[R][2] = {};
  for (int c = 0; c < dim; c += kQuad, narrow += kLanes) {
    Vec keys[V];
    UNROLLED for (int n = 0; n < V; ++n) keys[n] = load(narrow + n * (kLanes / kQuad) * dim);
    UNROLLED for (int r = 0; r < R; ++r) {
      const Vec x = splat4(q + r * row + c);
      UNROLLED for (int n = 0; n < V; ++n) sums[r][n] += x * keys[n];
    }
  }
  UNROLLED for (int r = 0; r < R; ++r) {
    UNROLLED for (int n = 0; n < V; ++n) sums[r][n] = sum_of_4(sums[r][n]);
    store(scores + r * stride, __builtin_shufflevector(sums[r][0], sums[r][1],
                                                       (kLane * kQuad % (2 * kLanes))...));
  }
}

// The first ``keys`` of ``packed`` ones.
template <int R>
void score_rows(const float* q, int64_t row, const float* panel, int dim, int keys,
                       int packed, float* scores, int stride) {
  const int wide = wide_keys(packed, dim);
  for (int first = 0; first < smaller(keys, wide); first += kPanel) {
    const int width = smaller(kPanel, wide - first);
    if (kVectors > 2 && keys - first > 2 * kLanes && width > 2 * kLanes)
      score_tile<R, kVectors>(q, row, panel, width, dim, scores + first, stride);
    else if (keys - first > kLanes && width > kLanes)
      score_tile<R, 2>(q, row, panel, width, dim, scores + first, stride);
    else
      score_tile<R, 1>(q, row, panel, width, dim, scores + first, stride);
    panel += static_cast<size_t>(width) * dim;
  }
  const auto lanes = UpTo<kLanes>::Each();
  if (keys - wide > kLanes / kQuad)
    score_last<R, 2>(q, row, panel, dim, scores + wide, stride, lanes);
  else if (keys > wide)
    score_last<R, 1>(q, row, panel, dim, scores + wide, stride, lanes);
}

// out[r, 0..V) = weights[r] . values, divided by the row's sum
template <int R, int V>
INLINE void mix_tile(const float* weights, int stride, const float* values, int64_t width,
                     int keys, const float* inverse, float* out, int64_t row, int columns) {
  int key = 0;
  do {
    const bool more = key > 0;
    Vec sums[R][V] = {};
    for (const int end = smaller(keys, key + kSummed); key < end; ++key, values += width) {
      Vec value[V];
      UNROLLED for (int n = 0; n < V; ++n) value[n] = load(values + n * kLanes);
      UNROLLED for (int r = 0; r < R; ++r) {
        const Vec x = splat(weights[r * stride + key]);
        UNROLLED for (int n = 0; n < V; ++n) sums[r][n] += x * value[n];
      }
    }
    UNROLLED for (int r = 0; r < R; ++r) UNROLLED for (int n = 0; n < V; ++n) {
        Vec x = sums[r][n] * inverse[r];
        float* to = out + r * row + n * kLanes;
        if (columns >= kLanes)
          store(to, more ? x + load(to) : x);
        else
          for (int i = 0; i < columns; ++i) to[i] = more ? x[i] + to[i] : x[i];
      }
  } while (key < keys);
}

template <int R>
void mix_rows(const float* weights, const Head& head, int keys, int dim,
                     const float* inverse, float* out, int64_t row) {
  // 4 vectors go as 2 + 2: one alone would leave the multipliers waiting for its sums. The last
  // ones may start early, and compute some columns twice.
  for (int next = 0, left; (left = ceil_div(dim - next, kLanes)) > 0;) {
    const int most = kVectors > 2 && left >= 3 && left != 4 ? 3 : smaller(left, 2);
    const int vectors = dim < kLanes ? 1 : smaller(most, dim / kLanes);
    const int first = dim < kLanes ? 0 : smaller(next, dim - vectors * kLanes);
    const float* values = head.values + first;
    if (kVectors > 2 && vectors == 3)
      mix_tile<R, kVectors>(weights, head.stride, values, head.value_row, keys, inverse,
                            out + first, row, dim);
    else if (vectors == 2)
      mix_tile<R, 2>(weights, head.stride, values, head.value_row, keys, inverse, out + first, row,
                     dim);
    else
      mix_tile<R, 1>(weights, head.stride, values, head.value_row, keys, inverse, out + first, row,
                     dim);
    next += vectors * kLanes;
  }
}

// A row's mask is added; the largest scores are returned. Keys from ``real`` up to ``padded`` get
// -inf.
INLINE Vec masked(float* scores, int real, int padded, const float* mask) {
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
    const Vec x = select(iota() < real - j, load(scores + j) + added * kLog2E, splat(kNothing));
    store(scores + j, x);
    most = larger(x, most);
  }
  return most;
}

// Brings scores down whose largest one is too large for exp2_below, or is -inf: then there is
// nothing to read, all weights become 0, and no NaN is made. Returns what is now the largest.
float lowered(float* scores, int padded, float top) {
  for (int j = 0; top != kNothing && j < padded; j += kLanes)
    store(scores + j, load(scores + j) - top);
  return 0.0f;
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

// One head's rows, for all that is done to them.
struct Rows {
  const EpAttention& a;
  const Head& head;
  int batch, h, real;  // of the keys, how many

  int keys(int end) const { return a.causal ? smaller(real, end) : real; }
  int64_t place(int row) const {
    return (static_cast<int64_t>(batch) * a.queries + row) * a.heads * a.head_dim +
           static_cast<int64_t>(h) * a.head_dim;
  }
  const float* mask(int row) const {
    return a.mask ? a.mask + batch * a.mask_batch + h * a.mask_head + row * a.mask_query : nullptr;
  }
};

template <int R>
INLINE void score(int rows, const Rows& of, int first, float* scores) {
  if (rows == R)
    score_rows<R>(of.a.q + of.place(first), static_cast<int64_t>(of.a.heads) * of.a.head_dim,
                  of.head.keys, of.a.head_dim, of.keys(first + R), of.real, scores,
                  of.head.stride);
  else if constexpr (R > 1)
    score<R - 1>(rows, of, first, scores);
}

template <int R>
INLINE void mix(int rows, const Rows& of, int first, const float* weights, const float* inverse) {
  if (rows == R)
    mix_rows<R>(weights, of.head, of.keys(first + R), of.a.head_dim, inverse,
                of.a.out + of.place(first), static_cast<int64_t>(of.a.heads) * of.a.head_dim);
  else if constexpr (R > 1)
    mix<R - 1>(rows, of, first, weights, inverse);
}

// Up to kLanes rows of scores become weights; ``inverse`` gets what they are still to be
// multiplied by. Each step goes through all rows: in one loop, every row would wait for its own
// sums.
void weigh_rows(const Rows& of, int first, int count, int padded, float* scores, float* inverse) {
  const int stride = of.head.stride;
  Vec most[kLanes] = {}, totals[kLanes] = {};
  for (int r = 0; r < count; ++r)
    most[r] = masked(scores + r * stride, of.keys(first + r + 1), padded, of.mask(first + r));
  float tops[kLanes];
  const Vec top = whole_above(folded(most, larger));
  store(tops, top);
  if (any((top > kLargestTop) | (top < -kLargestTop)))
    for (int r = 0; r < count; ++r)
      if (!(tops[r] <= kLargestTop && tops[r] >= -kLargestTop))
        tops[r] = lowered(scores + r * stride, padded, tops[r]);
  for (int r = 0; r < count; ++r)
    totals[r] = weigh(scores + r * stride, padded, splat(tops[r]));
  const Vec all = folded(totals, [](Vec x, Vec y) { return x + y; });
  store(inverse, select(all == 0.0f, Vec{}, 1.0f / all));
}

void add_received(const Rows& of, int first, const float* weights, float inverse, float* received) {
  const EpAttention& a = of.a;
  const float weight = a.query_weights ? a.query_weights[of.batch * a.queries + first] : 1.0f;
  for (int j = 0; j < of.keys(first + 1); ++j) received[j] += weights[j] * (inverse * weight);
}

// The rows of tiles ``tile`` to ``last``.
void attend(const Rows& of, const Tiles& tiles, int tile, int last, float* received) {
  const int first = tiles.begin(tile), end = tiles.begin(last), stride = of.head.stride;
  float inverse[kScores / kLanes + kRows + kLanes];
  float* scores = of.head.scores - static_cast<int64_t>(first) * stride;
  for (int t = tile; t < last; ++t) {
    const int row = tiles.begin(t);
    score<kRows>(tiles.begin(t + 1) - row, of, row, scores + row * stride);
  }
  const int padded = round_up(of.keys(end), kLanes);
  for (int row = first; row < end; row += kLanes)
    weigh_rows(of, row, smaller(kLanes, end - row), padded, scores + row * stride,
               inverse + row - first);
  for (int row = first; received && row < end; ++row)
    add_received(of, row, scores + row * stride, inverse[row - first], received);
  for (int t = tile; t < last; ++t) {
    const int row = tiles.begin(t);
    mix<kRows>(tiles.begin(t + 1) - row, of, row, scores + row * stride, inverse + row - first);
  }
}

// Steps are (batch, kv head, part of the query rows).
struct Steps {
  int parts, count;

  explicit Steps(const EpAttention& a) {
    const int heads = a.batch * a.kv_heads;
    parts = smaller(Tiles(a).count,
                    ceil_div(a.threads < 1 ? 1 : a.threads, heads < 1 ? 1 : heads));
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
  Head head(a, workspace);
  pack_keys(a.k + place, row, real, a.head_dim, a.scale * kLog2E, head.keys);
  head.values = a.v + place;
  head.value_row = row;
  if (!Head::in_place(a)) {
    head.value_row = round_up(a.head_dim, kLanes);
    pack_values(a.v + place, row, real, a.head_dim, head.value_row, head.packed);
    head.values = head.packed;
  }
  float* received = a.received ? a.received + static_cast<int64_t>(step) * a.keys : nullptr;
  for (int j = 0; received && j < a.keys; ++j) received[j] = 0.0f;
  const Tiles tiles(a);
  const int repeat = a.heads / a.kv_heads;
  const int end = tiles.count * (part + 1) / steps.parts;
  for (int h = group * repeat; h < (group + 1) * repeat; ++h)
    for (int t = tiles.count * part / steps.parts; t < end; t += head.tiles)
      attend({a, head, batch, h, real}, tiles, t, smaller(end, t + head.tiles), received);
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

#define EP_STRING_OF(text) #text
#define EP_STRING(text) EP_STRING_OF(text)
#define EP_JOIN_OF(a, b) a##b
#define EP_JOIN(a, b) EP_JOIN_OF(a, b)

extern "C" const EpAttentionKernel EP_JOIN(ep_attention_, EP_ISA) = {
    EP_STRING(EP_ISA), kLanes, steps_of, workspace_of, run, peak};
