// edgeprune::slim_attention as an operator, for graphs that call it outside our delegate.
#include <executorch/extension/kernel_util/make_boxed_from_unboxed_functor.h>
#include <executorch/runtime/kernel/kernel_includes.h>
#include <stdlib.h>

#include "../kernels/slim_attention.h"
#include "threads.h"

namespace {

using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::runtime::Error;
using executorch::runtime::KernelRuntimeContext;

// Found once: asking the processor takes 20 us and more in a virtual machine.
const EpAttentionKernel* const kKernel = ep_attention_kernel(nullptr);

bool is_plain(const Tensor& x, int rank) {
  return x.dim() == rank && x.scalar_type() == ScalarType::Float &&
         executorch::runtime::tensor_is_default_dim_order(x);
}

// A mask [batch or 1, heads or 1, queries or 1, keys].
bool read_mask(const Tensor& mask, EpAttention* a) {
  if (!is_plain(mask, 4) || mask.size(3) != a->keys) return false;
  const int64_t wanted[] = {a->batch, a->heads, a->queries};
  int64_t* strides[] = {&a->mask_batch, &a->mask_head, &a->mask_query};
  int64_t stride = a->keys;
  for (int axis = 2; axis >= 0; --axis) {
    const int64_t size = mask.size(axis);
    if (size != 1 && size != wanted[axis]) return false;
    *strides[axis] = size == 1 ? 0 : stride;
    stride *= size;
  }
  a->mask = mask.const_data_ptr<float>();
  return true;
}

bool is_whole(int64_t number) { return number > 0 && number <= INT32_MAX; }

bool read_sizes(const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads, int64_t kv_heads,
                EpAttention* a) {
  if (!is_plain(q, 3) || !is_plain(k, 3) || !is_plain(v, 3)) return false;
  if (!is_whole(heads) || !is_whole(kv_heads) || q.size(2) % heads) return false;
  a->batch = q.size(0), a->queries = q.size(1), a->keys = k.size(1);
  a->heads = heads, a->kv_heads = kv_heads, a->head_dim = q.size(2) / heads;
  for (const Tensor* x : {&k, &v})
    if (x->size(0) != a->batch || x->size(1) != a->keys || x->size(2) != kv_heads * a->head_dim)
      return false;
  return !ep_attention_refuses(a);
}

// False when there is no memory, or the threads failed.
bool run(const EpAttention& a, edgeprune::RuntimeThreads& threads) {
  struct Task {
    const EpAttention& a;
    int steps, parts;
    size_t bytes;
    char* memory;
  } task{a, kKernel->steps(&a), 0, kKernel->workspace_bytes(&a), nullptr};
  if (!task.steps) return true;
  task.parts = a.threads < task.steps ? a.threads : task.steps;
  task.memory = static_cast<char*>(malloc(task.bytes * task.parts));
  if (!task.memory) return false;
  const auto work = [](void* held, int part) {
    const Task& t = *static_cast<Task*>(held);
    const auto from = [&t](int p) { return static_cast<int>(int64_t{t.steps} * p / t.parts); };
    kKernel->run(&t.a, from(part), from(part + 1), t.memory + part * t.bytes);
  };
  const bool done =
      task.parts == 1 ? (work(&task, 0), true) : threads.each(task.parts, work, &task);
  free(task.memory);
  return done;
}

Tensor& slim_attention_out(KernelRuntimeContext& context, const Tensor& q, const Tensor& k,
                           const Tensor& v, const std::optional<Tensor>& mask, int64_t heads,
                           int64_t kv_heads, double scale, bool causal, Tensor& out) {
  EpAttention a{};
  ET_KERNEL_CHECK(context, read_sizes(q, k, v, heads, kv_heads, &a), InvalidArgument, out);
  ET_KERNEL_CHECK(context, !mask || read_mask(*mask, &a), InvalidArgument, out);
  ET_KERNEL_CHECK(context, executorch::runtime::resize_tensor(out, q.sizes()) == Error::Ok,
                  InvalidArgument, out);
  edgeprune::RuntimeThreads threads;
  const int32_t keys = ep_attention_real_keys(&a);
  if (a.batch == 1) a.lengths = &keys;
  a.scale = static_cast<float>(scale), a.causal = causal, a.threads = threads.count();
  a.q = q.const_data_ptr<float>(), a.k = k.const_data_ptr<float>();
  a.v = v.const_data_ptr<float>(), a.out = out.mutable_data_ptr<float>();
  ET_KERNEL_CHECK(context, run(a, threads), MemoryAllocationFailed, out);
  return out;
}

}  // namespace

EXECUTORCH_LIBRARY(edgeprune, "slim_attention.out", slim_attention_out);
