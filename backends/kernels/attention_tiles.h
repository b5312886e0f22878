// The arithmetic of slim attention, on rows, panels and tiles in memory: packing, products,
// weights. How a call is cut into them is in slim_attention.cc.
#ifndef EDGEPRUNE_ATTENTION_TILES_H
#define EDGEPRUNE_ATTENTION_TILES_H

#include "half.h"
#include "kernel.h"

namespace {

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kNothing = -__builtin_huge_valf();
// A tile of kRows x kVectors accumulators, with as many vectors and one broadcast beside them.
constexpr int kVectors = kRegisters == 32 ? 3 : 2;
constexpr int kRows = kRegisters == 32 ? 9 : 6;
constexpr int kPanel = kVectors * kLanes;
// Keys added up in a row before their sum joins the others: 1,000 at once lose 2.3e-6.
constexpr int kSummed = 128;

// Keys in vectors that are kLanes keys wide. Up to half a vector of last keys goes into narrow
// vectors instead, of few keys x some columns: a quarter of the work, without empty lanes.
INLINE int wide_keys(int count, int dim) {
  const int rest = count % kLanes;
  return rest > kLanes / 2 || dim % 4 ? round_up(count, kLanes) : count - rest;
}

// Columns in narrow vectors: all are one key's where only one is left.
INLINE int narrow_columns(int count, int dim) {
  return count % kLanes == 1 && dim % kLanes == 0 ? kLanes : 4;
}

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
template <class Number>
INLINE void pack_wide(const Number* k, int64_t row, int real, int dim, float factor, float* to,
                      int width) {
  const int last = smaller(real, kLanes) - 1;
  if (dim < kLanes) {
    for (int c = 0; c < dim; ++c)
      for (int i = 0; i < kLanes; ++i)
        to[c * width + i] = number(k[smaller(i, last) * row + c]) * factor;
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
// then the narrow vectors, each [head_dim / columns, keys, columns].
template <class Number>
INLINE void pack_keys(const Number* k, int64_t row, int count, int dim, float factor, float* to) {
  const int wide = wide_keys(count, dim);
  for (int first = 0; first < wide; first += kPanel) {
    const int width = smaller(kPanel, wide - first);
    for (int key = 0; key < width; key += kLanes)
      pack_wide(k + (first + key) * row, row, count - first - key, dim, factor, to + key, width);
    to += static_cast<size_t>(width) * dim;
  }
  const int columns = narrow_columns(count, dim), keys = kLanes / columns;
  for (int first = wide; first < count; first += keys, to += keys * dim)
    for (int i = 0; i < keys; ++i) {
      const Number* key = k + smaller(first + i, count - 1) * row;
      for (int c = 0; c < dim; c += columns)
        for (int n = 0; n < columns; n += 4)
          store4(to + c * keys + i * columns + n, load4(key + c + n) * factor);
    }
}

template <class Number>
INLINE void pack_values(const Number* v, int64_t row, int count, int dim, int width, float* to) {
  for (int key = 0; key < count; ++key, v += row, to += width) {
    int c = 0;
    for (; c + kLanes <= dim; c += kLanes) store(to + c, load(v + c));
    for (; c < width; ++c) to[c] = c < dim ? number(v[c]) : 0.0f;
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

// The same for V narrow vectors of ``kColumns`` columns; -inf from ``count`` keys on.
template <int kColumns, int R, int V, int... kLane>
INLINE void score_last(const float* q, int64_t row, const float* narrow, int dim, int count,
                       float* scores, int stride, Lanes<kLane...>) {
  constexpr int kKeys = kLanes / kColumns;
  Vec sums[R][V] = {};
  for (int c = 0; c < dim; c += kColumns, narrow += kLanes) {
    Vec keys[V];
    UNROLLED for (int n = 0; n < V; ++n) keys[n] = load(narrow + n * kKeys * dim);
    UNROLLED for (int r = 0; r < R; ++r) {
      const Vec x = load_again<kColumns>(q + r * row + c);
      UNROLLED for (int n = 0; n < V; ++n) sums[r][n] += x * keys[n];
    }
  }
  UNROLLED for (int r = 0; r < R; ++r) {
    UNROLLED for (int n = 0; n < V; ++n) sums[r][n] = sum<kColumns / 2>(sums[r][n]);
    const Vec x =
        __builtin_shufflevector(sums[r][0], sums[r][V - 1], (kLane * kColumns % (2 * kLanes))...);
    store(scores + r * stride, first_lanes(count, x, kNothing));
  }
}

// Keys from ``keys`` up to ``padded`` get -inf.
INLINE void hide(float* scores, int keys, int padded) {
  for (int j = keys / kLanes * kLanes; j < padded; j += kLanes)
    store(scores + j, first_lanes(keys - j, load(scores + j), kNothing));
}

// The first ``keys`` of ``packed`` ones.
template <int R>
void score_rows(const float* q, int64_t row, const float* panel, int dim, int keys, int packed,
                float* scores, int stride) {
  const int wide = wide_keys(packed, dim);
  for (int first = 0; first < smaller(keys, wide); first += kPanel) {
    const int width = smaller(kPanel, wide - first), vectors = ceil_div(keys - first, kLanes);
    float* to = scores + first;
    if (kVectors > 2 && vectors > 2 && width > 2 * kLanes)
      score_tile<R, kVectors>(q, row, panel, width, dim, to, stride);
    else if (vectors > 1 && width > kLanes)
      score_tile<R, 2>(q, row, panel, width, dim, to, stride);
    else
      score_tile<R, 1>(q, row, panel, width, dim, to, stride);
    panel += static_cast<size_t>(width) * dim;
  }
  // Apart from the tiles, which it would slow by 1.5%.
  if (wide > packed) UNROLLED for (int r = 0; r < R; ++r) hide(scores + r * stride, packed, wide);
  if (keys <= wide) return;
  const auto lanes = UpTo<kLanes>::Each();
  const int rest = packed - wide;
  scores += wide;
  if (keys - wide > kLanes / 4)
    score_last<4, R, 2>(q, row, panel, dim, rest, scores, stride, lanes);
  else if (narrow_columns(packed, dim) == 4)
    score_last<4, R, 1>(q, row, panel, dim, rest, scores, stride, lanes);
  else
    score_last<kLanes, R, 1>(q, row, panel, dim, rest, scores, stride, lanes);
}

// out[r, 0..V) = weights[r] . values, divided by the row's sum
template <int R, int V>
INLINE void mix_tile(const float* weights, int stride, const float* values, int64_t width, int keys,
                     const float* inverse, float* out, int64_t row, int columns) {
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
void mix_rows(const float* weights, int stride, const float* values, int64_t width, int keys,
              int dim, const float* inverse, float* out, int64_t row) {
  // 4 vectors go as 2 + 2: one alone would leave the multipliers waiting for its sums. The last
  // ones may start early, and compute some columns twice.
  for (int next = 0, left; (left = ceil_div(dim - next, kLanes)) > 0;) {
    const int most = kVectors > 2 && left >= 3 && left != 4 ? 3 : smaller(left, 2);
    const int vectors = dim < kLanes ? 1 : smaller(most, dim / kLanes);
    const int c = dim < kLanes ? 0 : smaller(next, dim - vectors * kLanes);
    if (kVectors > 2 && vectors == 3)
      mix_tile<R, kVectors>(weights, stride, values + c, width, keys, inverse, out + c, row, dim);
    else if (vectors == 2)
      mix_tile<R, 2>(weights, stride, values + c, width, keys, inverse, out + c, row, dim);
    else
      mix_tile<R, 1>(weights, stride, values + c, width, keys, inverse, out + c, row, dim);
    next += vectors * kLanes;
  }
}

INLINE void add_mask(float* scores, const float* mask, int keys) {
  int j = 0;
  for (; j + kLanes <= keys; j += kLanes)
    store(scores + j, load(scores + j) + load(mask + j) * kLog2E);
  if (j < keys) store(scores + j, load(scores + j) + load_some(mask + j, keys - j) * kLog2E);
}

INLINE Vec largest(const float* scores, int padded) {
  Vec most = splat(kNothing);
  for (int j = 0; j < padded; j += kLanes) most = larger(load(scores + j), most);
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

}  // namespace

#endif
