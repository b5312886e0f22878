// Slim attention equals its reference in any sizes, stays inside its buffers, and spreads NaN.
#include "kernels/slim_attention.h"

#include <algorithm>
#include <memory>
#include <string>

#include "check.h"
#include "kernels/half.h"

namespace {

using Floats = std::unique_ptr<Guarded<float>>;
using Halves = Guarded<_Float16>;

Floats normals(size_t count, Random& random) {
  Floats made(new Guarded<float>(count));
  for (size_t i = 0; i < count; ++i) (*made)[i] = random.normal();
  return made;
}

// A call and what it points to.
struct Call {
  EpAttention a{};
  Floats q, k, v, mask, weights;
  std::unique_ptr<Guarded<int32_t>> lengths;

  Call(Random& random, int batch, int queries, int keys, int groups, int repeat, int dim) {
    a.batch = batch, a.queries = queries, a.keys = keys;
    a.heads = groups * repeat, a.kv_heads = groups, a.head_dim = dim;
    a.scale = 1 / sqrtf(dim), a.threads = 1;
    q = normals(outputs(), random);
    k = normals(static_cast<size_t>(batch) * keys * groups * dim, random);
    v = normals(k->size(), random);
    a.q = q->data(), a.k = k->data(), a.v = v->data();
  }
  size_t outputs() const { return static_cast<size_t>(a.batch) * a.queries * a.heads * a.head_dim; }

  // Key 0 stays readable where the whole row is not hidden: beside -1e9 scores have no digits.
  void add_mask(Random& random) {
    const int64_t gap = random.pick({0, 0, 3});  // rows need not follow each other at once
    const int64_t row = a.keys + gap;
    int64_t count = row;
    const auto stride = [&](int size) {
      if (random.one_in(2) || size < 1) return int64_t{0};
      count *= size;
      return count / size;
    };
    a.mask_query = stride(a.queries), a.mask_head = stride(a.heads), a.mask_batch = stride(a.batch);
    mask.reset(new Guarded<float>(count - gap));
    const float hidden[] = {-1e9f, -INFINITY};
    bool nothing = false;
    for (size_t i = 0; i < mask->size(); ++i) {
      if (i % row == 0) nothing = random.one_in(8);
      (*mask)[i] = nothing            ? -INFINITY
                   : i % row == 0     ? 0
                   : random.one_in(3) ? random.pick(hidden)
                                      : random.normal();
    }
    a.mask = mask->data();
  }
  void add_lengths(Random& random) {
    const int some[] = {0,         1,          a.keys - 1,
                        a.keys,    a.keys + 1, a.keys + 1000,
                        INT32_MAX, -3,         random.between(0, a.keys)};
    lengths.reset(new Guarded<int32_t>(a.batch));
    for (int b = 0; b < a.batch; ++b) (*lengths)[b] = random.pick(some);
    a.lengths = lengths->data();
  }
  void add_weights(Random& random) {
    weights.reset(new Guarded<float>(static_cast<size_t>(a.batch) * a.queries));
    for (size_t i = 0; i < weights->size(); ++i) (*weights)[i] = random.between(0, 2);
    a.query_weights = weights->data();
  }
};

// All steps, last to first or in any other order, each with a workspace full of NaN; the keys split
// where that is offered.
template <class Number>
void run(const EpAttentionKernel& kernel, EpAttention a, Guarded<Number>& out,
         Guarded<float>* received, Random& random) {
  REQUIRE(!ep_attention_refuses(&a));
  out.spoil();
  if (received) received->spoil();
  a.out = out.data(), a.received = received ? received->data() : nullptr;
  Guarded<char> parts(kernel.parts_bytes(&a));
  parts.spoil();
  if (parts.size() && !received) a.parts = reinterpret_cast<float*>(parts.data());
  const int steps = kernel.steps(&a);
  std::vector<int> order(steps);
  for (int i = 0; i < steps; ++i) order[i] = i;
  for (int i = steps - 1; i > 0; --i) std::swap(order[i], order[random.between(0, i)]);
  Guarded<char> workspace(kernel.workspace_bytes(&a));
  for (int step : order) {
    workspace.spoil();
    kernel.run(&a, step, step + 1, workspace.data());
  }
  kernel.merge(&a);
}

// The parts of all steps, summed for each batch.
void join(Guarded<float>& parts, const EpAttention& a, Guarded<float>& whole) {
  const size_t steps = a.keys ? parts.size() / a.keys : 0;
  for (int b = 0; b < a.batch; ++b)
    for (int j = 0; j < a.keys; ++j) {
      double sum = 0;
      for (size_t s = steps / a.batch * b; s < steps / a.batch * (b + 1); ++s)
        sum += parts[s * a.keys + j];
      whole[static_cast<size_t>(b) * a.keys + j] = static_cast<float>(sum);
    }
}

double error_of(const EpAttentionKernel& kernel, Call& call, bool with_received, Random& random) {
  EpAttention a = call.a;
  Guarded<float> out(call.outputs()), wanted(call.outputs());
  Guarded<float> parts(with_received ? static_cast<size_t>(kernel.steps(&a)) * a.keys : 0);
  Guarded<float> received(static_cast<size_t>(a.batch) * a.keys), wanted_received(received.size());
  run(kernel, a, out, with_received ? &parts : nullptr, random);
  a.out = wanted.data(), a.received = wanted_received.data();
  ep_attention_reference(&a);
  const double error = relative_error(out.data(), wanted.data(), out.size());
  if (!with_received) return error;
  join(parts, a, received);
  return fmax(error, relative_error(received.data(), wanted_received.data(), received.size()));
}

// The same on half floats, their outputs no further apart than two neighbours.
double error_of_halves(const EpAttentionKernel& kernel, Call& call, Random& random) {
  Halves q(call.q->size()), k(call.k->size()), v(k.size()), out(q.size()), wanted(q.size());
  std::copy_n(call.q->data(), q.size(), q.data());
  std::copy_n(call.k->data(), k.size(), k.data());
  std::copy_n(call.v->data(), v.size(), v.data());
  EpAttention a = call.a;
  a.type = EP_FLOAT16, a.q = q.data(), a.k = k.data(), a.v = v.data();
  run(kernel, a, out, nullptr, random);
  a.out = wanted.data();
  ep_attention_reference(&a);
  double worst = 0, most = 1e-3;
  for (size_t i = 0; i < out.size(); ++i) {
    const double is = out[i], should = wanted[i], gap = fmax(0x1p-24, 0x1p-10 * fabs(should));
    REQUIRE(isfinite(is) && isfinite(should));
    most = fmax(most, fabs(should));
    worst = fmax(worst, fabs(is - should) - gap);
  }
  return worst / most;
}

double any_sizes(const EpAttentionKernel& kernel, Random& random) {
  const int dims[] = {1, 2, 3, 8, 15, 16, 17, 31, 32, 33, 48, 64, 80, 96, 127, 128};
  // 1,000 keys need sums of sums; 0 tokens are nothing to do, but may be asked for.
  const int tokens[] = {0, 1, 2, 7, 15, 16, 17, 33, random.between(1, 140), 300};
  Call call(random, random.one_in(20) ? 0 : random.between(1, 3), random.pick(tokens),
            random.one_in(20) ? 1000 : random.pick(tokens), random.between(1, 3),
            random.between(1, 3), random.one_in(3) ? random.between(1, 128) : random.pick(dims));
  call.a.causal = random.one_in(3);
  call.a.threads = random.pick({0, 1, 1, 2, 3, 7, 64});
  if (random.one_in(4)) call.a.scale = random.normal();
  if (random.one_in(2)) call.add_mask(random);
  if (random.one_in(3)) call.add_lengths(random);
  if (random.one_in(3)) call.add_weights(random);
  // A product of large numbers loses digits before anything is made of it.
  call.a.scale =
      fminf(fabsf(call.a.scale), 1 / sqrtf(call.a.head_dim)) * (call.a.scale < 0 ? -1.0f : 1.0f);
  if (random.one_in(3)) return error_of_halves(kernel, call, random);
  return error_of(kernel, call, random.one_in(2), random);
}

// Few queries of many keys, which threads share.
double parts_of_keys(const EpAttentionKernel& kernel, Random& random) {
  const int groups = random.between(1, 2), batch = random.between(1, 2);
  Call call(random, batch, random.between(1, 24), random.between(512, 1200), groups,
            random.between(1, 3), random.between(1, 70));
  call.a.threads = batch * groups * random.between(2, 5);
  REQUIRE(kernel.parts_bytes(&call.a));
  if (random.one_in(2)) call.add_mask(random);
  if (random.one_in(2)) call.add_lengths(random);
  if (random.one_in(3)) return error_of_halves(kernel, call, random);
  return error_of(kernel, call, false, random);
}

// Values of keys that may not be read are multiplied by 0, as PyTorch does: not under causal.
double odd_numbers(const EpAttentionKernel& kernel, Random& random) {
  const int keys = random.one_in(8) ? random.between(512, 600) : random.between(1, 40);
  Call call(random, 1, random.between(1, 20), keys, 2, 1, random.between(1, 40));
  call.a.threads = 4;
  Guarded<float>& where = *random.pick({&call.q, &call.k, &call.v})->get();
  const bool may_be_infinite = &where == call.v.get();
  where[random.next() % where.size()] = may_be_infinite && random.one_in(2) ? -INFINITY : NAN;
  return error_of(kernel, call, false, random);
}

// Scores of 10^15 leave nothing but the best key, and tiny ones all keys alike.
void large_and_tiny_scores(const EpAttentionKernel& kernel, Random& random) {
  const int keys = random.one_in(8) ? random.between(512, 600) : random.between(1, 70);
  const int dim = random.between(1, 64);
  Call call(random, 1, 9, keys, 1, 1, dim);
  call.a.threads = 2;
  const float size = random.pick({1e-38f, 1e-20f, 1e4f, 1e15f});
  for (size_t i = 0; i < call.q->size(); ++i) (*call.q)[i] *= size;
  Guarded<float> out(call.outputs());
  run(kernel, call.a, out, nullptr, random);
  for (int i = 0; i < 9; ++i) {
    double best = -INFINITY, second = -INFINITY;
    int winner = 0;
    for (int j = 0; j < keys; ++j) {
      double score = 0;
      for (int c = 0; c < dim; ++c)
        score += static_cast<double>((*call.q)[i * dim + c]) * (*call.k)[j * dim + c];
      score *= call.a.scale;
      if (score > best)
        second = best, best = score, winner = j;
      else
        second = fmax(second, score);
    }
    const bool decided = best - second > 40 + 1e-4 * fabs(best);
    for (int c = 0; c < dim; ++c) {
      const float got = out[i * dim + c];
      REQUIRE(isfinite(got));
      if (decided) REQUIRE(fabs(got - (*call.v)[winner * dim + c]) < 1e-5);
      double mean = 0;
      for (int j = 0; j < keys; ++j) mean += (*call.v)[j * dim + c] / keys;
      if (size < 1) REQUIRE(fabs(got - mean) < 1e-5);
    }
  }
}

// One key alone hands its values on: every half float there is.
void every_half(const EpAttentionKernel& kernel, Random& random) {
  constexpr int kAll = 1 << 16, kWidth = 128;
  Halves q(kAll), k(kAll), v(kAll), out(kAll);
  memset(q.data(), 0, kAll * sizeof(_Float16)), memset(k.data(), 0, kAll * sizeof(_Float16));
  for (int i = 0; i < kAll; ++i) {
    const uint16_t bits = i;
    memcpy(&v[i], &bits, sizeof bits);
  }
  EpAttention a{};
  a.batch = kAll / kWidth, a.queries = a.keys = a.heads = a.kv_heads = 1, a.head_dim = kWidth;
  a.scale = 1, a.type = EP_FLOAT16, a.q = q.data(), a.k = k.data(), a.v = v.data();
  run(kernel, a, out, nullptr, random);
  for (int i = 0; i < kAll; ++i)
    REQUIRE(out[i] == v[i] || (isnan((float)out[i]) && isnan((float)v[i])));
}

// Floats to halves and back, as this file's instruction set does it: numbers in the middle between
// two halves, or anywhere.
void conversions(Random& random) {
  for (uint32_t i = 0; i < 1 << 16; ++i) {
    const Half bits = i, next = i + 1;
    _Float16 half, other;
    memcpy(&half, &bits, sizeof bits), memcpy(&other, &next, sizeof next);
    float wide[kLanes];
    widen(&bits, 1, wide);
    REQUIRE(*wide == (float)half || (isnan(*wide) && isnan((float)half)));
    const uint32_t any = random.next();
    float numbers[kLanes] = {((float)half + (float)other) / 2, 0};
    memcpy(&numbers[1], &any, sizeof any);
    Half got[2];
    narrow(numbers, 2, got);
    for (int n = 0; n < 2; ++n) {
      const _Float16 should = numbers[n];
      _Float16 is;
      memcpy(&is, &got[n], sizeof is);
      REQUIRE(!memcmp(&is, &should, sizeof is) || (isnan((float)is) && isnan((float)should)));
    }
  }
}

void refuse(const char* reason, int EpAttention::* place, int size) {
  EpAttention a{};
  a.batch = a.queries = a.keys = a.heads = a.kv_heads = a.head_dim = a.threads = 1;
  REQUIRE(!ep_attention_refuses(&a));
  a.*place = size;
  const char* said = ep_attention_refuses(&a);
  REQUIRE(said && std::string(said).find(reason) != std::string::npos);
}

void refusals() {
  refuse("negative", &EpAttention::batch, -1);
  refuse("negative", &EpAttention::queries, -1);
  refuse("negative", &EpAttention::keys, INT32_MIN);
  refuse("no heads", &EpAttention::heads, 0);
  refuse("no heads", &EpAttention::kv_heads, -2);
  refuse("multiple", &EpAttention::kv_heads, 2);
  refuse("head_dim", &EpAttention::head_dim, 0);
  refuse("head_dim", &EpAttention::head_dim, EP_MAX_HEAD_DIM + 1);
  refuse("tokens", &EpAttention::queries, EP_MAX_TOKENS + 1);
  refuse("tokens", &EpAttention::keys, INT32_MAX);
  refuse("threads", &EpAttention::threads, INT32_MAX);
  refuse("type", &EpAttention::type, 2);
  refuse("numbers", &EpAttention::batch, INT32_MAX);
  refuse("numbers", &EpAttention::heads, INT32_MAX);
  EpAttention a{};
  float mask = 0;
  a.heads = a.kv_heads = a.head_dim = 1, a.mask = &mask;
  for (int64_t EpAttention::* stride :
       {&EpAttention::mask_batch, &EpAttention::mask_head, &EpAttention::mask_query})
    for (int64_t size : {int64_t{-1}, INT64_MAX, int64_t{1} << 32}) {
      EpAttention other = a;
      other.*stride = size;
      REQUIRE(ep_attention_refuses(&other));
    }
}

// The last row of the last batch entry, where every index is as large as it gets. Only what it
// reads is written, so that tensors of gigabytes take no memory.
void last_row(const EpAttentionKernel& kernel, int batch, int queries, int keys, int heads, int dim,
              int threads) {
  Random random(0);
  Call last(random, 1, 1, keys, heads, 1, dim);
  EpAttention a = last.a;
  a.batch = batch, a.queries = queries, a.threads = threads;
  const size_t row = last.q->size(), rows = row * batch * queries, all = last.k->size() * batch;
  Guarded<float> q(rows), k(all), v(all), out(rows), wanted(row);
  std::copy_n(last.q->data(), row, &q[rows - row]);
  std::copy_n(last.k->data(), last.k->size(), &k[all - last.k->size()]);
  std::copy_n(last.v->data(), last.v->size(), &v[all - last.v->size()]);
  a.q = q.data(), a.k = k.data(), a.v = v.data(), a.out = out.data(), last.a.out = wanted.data();
  REQUIRE(!ep_attention_refuses(&a));
  Guarded<char> workspace(kernel.workspace_bytes(&a));
  const int steps = kernel.steps(&a);
  kernel.run(&a, steps - 1, steps, workspace.data());
  ep_attention_reference(&last.a);
  // A million values cancel each other out to a thousandth: few digits are left.
  REQUIRE(relative_error(&out[rows - dim], &wanted[row - dim], dim) < 1e-5);
}

void largest_sizes(const EpAttentionKernel& kernel) {
  last_row(kernel, 1 << 20, 1, 1, 8, 128, 1);
  last_row(kernel, 1, EP_MAX_TOKENS, 5, 2, 64, EP_MAX_THREADS);
  last_row(kernel, 1, 2, EP_MAX_TOKENS, 1, 4, 1);
}

double check(const char* name, int cases) {
  const EpAttentionKernel* kernel = ep_attention_kernel(name);
  if (!kernel) return -1;
  REQUIRE(!strcmp(kernel->name, name));
  refusals();
  largest_sizes(*kernel);
  Random fixed(0);
  every_half(*kernel, fixed);
  conversions(fixed);
  double worst = 0;
  for (int i = 0; i < cases; ++i) {
    Random random(i);
    worst = fmax(worst, any_sizes(*kernel, random));
    worst = fmax(worst, odd_numbers(*kernel, random));
    if (i % 4 == 0) worst = fmax(worst, parts_of_keys(*kernel, random));
    large_and_tiny_scores(*kernel, random);
  }
  return worst;
}

// The outputs' error, as the Python tests allow it.
const Check slim_attention("slim_attention", 2e-6, check);

}  // namespace
