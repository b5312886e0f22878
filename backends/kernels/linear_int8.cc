// A linear layer in 8 bits for one instruction set; compiled once for each (EP_ISA names it).
//
//   pack      weights, column panel after column panel, each in the order that a tile reads it
//   quantise  rows of x to 8 bits, a scale and a zero point each
//   tile      rows x panel products over all inputs, exact in int32
//   finish    zero point, scales, bias, activation
#include "linear_int8.h"

#include "dot.h"
#include "kernel.h"

namespace {

// A tile of kRows x kVectors accumulators, with as many vectors and one spread group beside them.
constexpr int kVectors = kRegisters == 32 && kTogether == 1 ? 3 : 2;
constexpr int kRows = kRegisters == 32 ? 8 : 6;
// Rows that a step takes at most: they stay in L2 while panel after panel passes.
constexpr int kPart = 128;

// How x is quantised in a row: x = scale (input - zero).
struct Row {
  float scale;
  int32_t zero;
};

typedef Input Inputs __attribute__((vector_size(kLanes * sizeof(Input))));

// Quantised x: a Row for each row, then the inputs, padded to whole groups.
struct Quantised {
  Row* rows;
  Input* inputs;
  int stride;  // inputs from a row to the next

  static size_t header(int rows) { return round_up(rows, 8) * sizeof(Row); }
  static size_t bytes(int rows, int in) {
    // Tiles read kTogether rows, also where there is one: of 10 rows as 5 + 5, an eleventh.
    const size_t read = static_cast<size_t>(rows) + kTogether - 1;
    return header(rows) + sizeof(Input) * read * round_up(in, kDepth);
  }
  Quantised(const void* from, int count, int in)
      : rows(static_cast<Row*>(const_cast<void*>(from))),
        inputs(reinterpret_cast<Input*>(reinterpret_cast<char*>(rows) + header(count))),
        stride(round_up(in, kDepth)) {}
};

// Columns of the packed weights: of each its sum, scale and bias, then the weights, in groups.
struct Panel {
  int first, vectors;  // where it starts, in vectors; how many there are
  int32_t* sums;
  float *scales, *bias;
  int8_t* weights;

  static size_t vector_bytes(int in) { return kLanes * (3 * sizeof(float) + round_up(in, kDepth)); }
  static int count(int out) { return ceil_div(ceil_div(out, kLanes), kVectors); }
  // Panels of like size: 4 vectors go as 2 + 2, not as 3 + 1.
  Panel(const void* packed, int in, int out, int number) {
    const int64_t all = ceil_div(out, kLanes), panels = count(out);
    first = all * number / panels;
    vectors = all * (number + 1) / panels - first;
    char* start = static_cast<char*>(const_cast<void*>(packed)) + first * vector_bytes(in);
    sums = reinterpret_cast<int32_t*>(start);
    scales = reinterpret_cast<float*>(sums + vectors * kLanes);
    bias = scales + vectors * kLanes;
    weights = reinterpret_cast<int8_t*>(bias + vectors * kLanes);
  }
};

size_t packed_bytes(int32_t in, int32_t out) {
  return ceil_div(out, kLanes) * Panel::vector_bytes(in);
}

void pack(int32_t in, int32_t out, const int8_t* weights, const float* scales, const float* bias,
          void* packed) {
  for (int number = 0; number < Panel::count(out); ++number) {
    const Panel panel(packed, in, out, number);
    const int columns = panel.vectors * kLanes;
    for (int c = 0; c < columns; ++c) {
      const int column = panel.first * kLanes + c;
      const int8_t* row = column < out ? weights + static_cast<int64_t>(column) * in : nullptr;
      int32_t sum = 0;
      for (int k = 0; k < round_up(in, kDepth); ++k) {
        const int8_t weight = row && k < in ? row[k] : 0;
        panel.weights[(k / kDepth * columns + c) * kDepth + k % kDepth] = weight;
        sum += weight;
      }
      panel.sums[c] = sum;
      panel.scales[c] = row ? scales[column] : 0.0f;
      panel.bias[c] = row && bias ? bias[column] : 0.0f;
    }
  }
}

size_t quantised_bytes(int32_t rows, int32_t in) { return Quantised::bytes(rows, in); }

// The numbers of a row end at 0 or beyond it, as zero has to be one of the inputs.
struct Range {
  float least, most, nan;
};

INLINE Range range_of(const float* x, int in) {
  Vec low[kTurns] = {}, high[kTurns] = {}, spoilt[kTurns] = {};
  each_vector(in, [&](int at, int left, int i) INLINED {
    const Vec v = load_some(x + at, left);
    low[i] = lesser(v, low[i]);
    high[i] = larger(v, high[i]);
    spoilt[i] += v * 0.0f;
  });
  const Vec lowest = lesser(lesser(low[0], low[1]), lesser(low[2], low[3]));
  const Vec highest = larger(larger(high[0], high[1]), larger(high[2], high[3]));
  const Vec nan = (spoilt[0] + spoilt[1]) + (spoilt[2] + spoilt[3]);
  return {-largest(-lowest)[0], largest(highest)[0], sum(nan)[0]};
}

// What quantises a row; ``factor`` is what to multiply with.
INLINE Row row_of_range(const Range& range, float* factor) {
#pragma clang fp contract(off)
  const float scale = range.most * (1.0f / 255) - range.least * (1.0f / 255);
  // Rows of smaller numbers count as zeros: the inverse of their scale is no float.
  const bool zeros = !(scale > 1e-36f), spoilt = range.nan != 0.0f;
  *factor = zeros || spoilt ? 0.0f : 1.0f / scale;
  const int32_t zero = static_cast<int32_t>(0.5f - (spoilt ? 0.0f : range.least * *factor));
  return {spoilt ? range.nan : zeros ? 0.0f : scale, zero - kOffset};
}

// x times ``factor``, rounded, from the zero point on. Every instruction set rounds alike: none
// multiplies and adds in one.
INLINE Inputs inputs_of(Vec x, float factor, int32_t zero) {
#pragma clang fp contract(off)
  const float round = 12582912.0f;
  const Vec scaled = x * factor;
  // The bits of the sum are those of ``round``, plus a whole number.
  const VecInt whole = (VecInt)(scaled + round) + (zero - 0x4b400000);
  const VecInt most = VecInt{} + (255 - kOffset);
  return __builtin_convertvector(whole > most ? most : whole, Inputs);
}

void quantise(const float* x, int32_t rows, int32_t in, int32_t first, int32_t last, void* to) {
  const Quantised quantised(to, rows, in);
  // Ranges of some rows first: each on its own would be waited for.
  constexpr int kAtOnce = 4;
  float factors[kAtOnce];
  for (; first < last; first += kAtOnce) {
    const int count = smaller(kAtOnce, last - first);
    const float* from = x + static_cast<int64_t>(first) * in;
    Row* row = quantised.rows + first;
    for (int r = 0; r < count; ++r)
      row[r] = row_of_range(range_of(from + static_cast<int64_t>(r) * in, in), factors + r);
    for (int r = 0; r < count; ++r, from += in) {
      Input* inputs = quantised.inputs + static_cast<int64_t>(first + r) * quantised.stride;
      const float factor = factors[r];
      const int32_t zero = row[r].zero;
      int k = 0;
      for (; k + kLanes <= in; k += kLanes)
        write_as(inputs + k, inputs_of(load(from + k), factor, zero));
      const Inputs rest = inputs_of(load_some(from + k, in - k), factor, zero);
      for (int i = 0; k + i < in; ++i) inputs[k + i] = rest[i];
      for (int i = in; i < quantised.stride; ++i) inputs[i] = 0;
    }
  }
}

// x Phi(x) = max(x, 0) - t Phi(-t) for t = |x|. The logarithm of Phi is nearly a parabola: a
// minimax polynomial gives it, and t Phi(-t) to 4.4e-7; past 5.5 that is below 1e-6 and left out.
INLINE Vec gelu(Vec x) {
  const Vec t = lesser(x < 0.0f ? -x : x, splat(5.5f));
  Vec p = splat(-4.7330930829e-04f);
  p = p * t + 7.0845573209e-03f;
  p = p * t - 5.1827382296e-02f;
  p = p * t - 4.5999243855e-01f;
  p = p * t - 1.1507878304e+00f;
  p = p * t - 1.0000376701e+00f;
  return select(x < 0.0f, Vec{}, x) - t * exp2_below(p, Vec{});
}

// Some rows of x, and where their outputs go.
struct Block {
  const Row* rows;
  const Input* inputs;
  int stride;  // inputs from a row to the next
  float* to;
  int64_t step;  // floats from a row to the next
  // The part of the next panel that these rows fetch into cache, and bytes of it each kDepth
  // inputs: else it is waited for, panel after panel, where weights are read once an inference
  // (128 rows: 384 -> 384 53 us instead of 47, 1536 -> 384 202 instead of 182).
  const int8_t* ahead;
  int pace;
};

// R rows, V vectors of columns, without activation.
template <int R, int V>
void tile(const Block& block, const Panel& panel) {
  constexpr int kGroups = ceil_div(R, kTogether), kWeights = V * kTogether;
  VecInt sums[kGroups][kWeights] = {};
  const int8_t* weights = panel.weights;
  const int8_t* ahead = block.ahead;
  const int stride = block.stride;
  for (int k = 0; k < stride; k += kDepth, weights += V * kLanes * kDepth, ahead += block.pace) {
    __builtin_prefetch(ahead);
    Weights w[kWeights];
    UNROLLED for (int n = 0; n < kWeights; ++n) w[n] =
        weights_at(weights + n * (kLanes * kDepth / kTogether));
    const Input* inputs = block.inputs + k;
    UNROLLED for (int g = 0; g < kGroups; ++g, inputs += kTogether * stride) {
      const Group x = spread(inputs, stride);
      UNROLLED for (int n = 0; n < kWeights; ++n) sums[g][n] = dot(sums[g][n], x, w[n]);
    }
  }
  UNROLLED for (int n = 0; n < V; ++n) {
    const VecInt all = read_as<VecInt>(panel.sums + n * kLanes);
    const Vec scale = load(panel.scales + n * kLanes), bias = load(panel.bias + n * kLanes);
    UNROLLED for (int r = 0; r < R; ++r) {
      const VecInt sum = row_of(sums[r / kTogether] + n * kTogether, r % kTogether);
      const VecInt whole = sum - all * block.rows[r].zero;
      const Vec x = __builtin_convertvector(whole, Vec) * block.rows[r].scale;
      store(block.to + r * block.step + n * kLanes, x * scale + bias);
    }
  }
}

template <int R>
INLINE void tile_any(int rows, const Block& block, const Panel& panel) {
  if constexpr (R > 1)
    if (rows < R) return tile_any<R - 1>(rows, block, panel);
  if (kVectors > 2 && panel.vectors > 2)
    tile<R, kVectors>(block, panel);
  else if (panel.vectors > 1)
    tile<R, 2>(block, panel);
  else
    tile<R, 1>(block, panel);
}

template <int kActivation>
void finish(const float* from, int rows, int columns, float* y, int64_t step) {
  for (int r = 0; r < rows; ++r, from += kVectors * kLanes, y += step)
    for (int c = 0; c < columns; c += kLanes) {
      Vec x = load(from + c);
      if (kActivation == EP_RELU) x = select(x < 0.0f, Vec{}, x);
      if (kActivation == EP_GELU) x = gelu(x);
      store_some(y + c, x, columns - c);
    }
}

// Steps are (part of the rows, panel).
struct Steps {
  int panels, parts;

  explicit Steps(const EpLinear& a) : panels(Panel::count(a.out)) {
    const int threads = a.threads < 1 ? 1 : a.threads;
    const int wanted = ceil_div(threads, panels < 1 ? 1 : panels);
    const int least = ceil_div(a.rows, kPart);
    parts = smaller(ceil_div(a.rows, kRows), wanted > least ? wanted : least);
  }
};

int32_t steps_of(const EpLinear* a) {
  const Steps steps(*a);
  return steps.panels * steps.parts;
}

void run_step(const EpLinear& a, const Steps& steps, int step) {
  const Panel panel(a.packed, a.in, a.out, step % steps.panels);
  const Quantised quantised(a.quantised, a.rows, a.in);
  const int64_t part = step / steps.panels, blocks = ceil_div(a.rows, kRows);
  const int start = panel.first * kLanes, columns = smaller(panel.vectors * kLanes, a.out - start);
  // Outputs that are not done yet, or do not fill their vectors, do not go to y at once.
  const bool direct = a.activation == EP_NO_ACTIVATION && columns == panel.vectors * kLanes;
  float buffer[kRows * kVectors * kLanes];
  const int64_t panel_bytes = int64_t{panel.vectors} * kLanes * quantised.stride;
  const int pace = ceil_div(panel_bytes, blocks * (quantised.stride / kDepth));
  for (int64_t b = blocks * part / steps.parts; b < blocks * (part + 1) / steps.parts; ++b) {
    // Blocks of like size: 17 rows go as 6 + 6 + 5, not as 8 + 8 + 1.
    const int first = a.rows * b / blocks, rows = a.rows * (b + 1) / blocks - first;
    float* y = a.y + static_cast<int64_t>(first) * a.out + start;
    const Block block = {quantised.rows + first,
                         quantised.inputs + static_cast<int64_t>(first) * quantised.stride,
                         quantised.stride,
                         direct ? y : buffer,
                         direct ? a.out : kVectors * kLanes,
                         panel.weights + panel_bytes * (blocks + b) / blocks,
                         pace};
    tile_any<kRows>(rows, block, panel);
    if (direct) continue;
    if (a.activation == EP_GELU)
      finish<EP_GELU>(buffer, rows, columns, y, a.out);
    else if (a.activation == EP_RELU)
      finish<EP_RELU>(buffer, rows, columns, y, a.out);
    else
      finish<EP_NO_ACTIVATION>(buffer, rows, columns, y, a.out);
  }
}

void run(const EpLinear* a, int32_t first, int32_t last) {
  const Steps steps(*a);
  for (int step = first; step < last; ++step) run_step(*a, steps, step);
}

int64_t peak(int64_t rounds) {
  // Enough sums to hide the latency of every core we know: 4 cycles, two or four a cycle.
  constexpr int kSums = kRegisters == 32 ? 20 : 12;
  static constexpr Input kInputs[2 * kDepth] = {1, 2};
  static constexpr int8_t kWeights[kLanes * kDepth] = {1, -1};
  VecInt sums[kSums];
  UNROLLED for (int i = 0; i < kSums; ++i) sums[i] = VecInt{} + i;
  const Weights w = weights_at(kWeights);
  Group x = spread(kInputs, kDepth);
  // Products of known numbers would be made once, and only added: where a product and its addition
  // are two instructions, both count. Loads and the widening of weights do not.
  for (int64_t round = 0; round < rounds; ++round) UNROLLED for (int i = 0; i < kSums; ++i) {
      unknown(x);
      sums[i] = dot(sums[i], x, w);
    }
  VecInt all{};
  UNROLLED for (int i = 0; i < kSums; ++i) all ^= sums[i];
  // The sums are read, so that they are computed.
  return all[0] == 1 ? 0 : rounds * kSums * kLanes * kDepth * 2;
}

}  // namespace

extern "C" const EpLinearKernel EP_JOIN(ep_linear_, EP_ISA) = {
    EP_STRING(EP_ISA), kLanes, packed_bytes, pack, quantised_bytes, quantise, steps_of, run, peak};
