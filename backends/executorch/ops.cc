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

bool read_mask(const Tensor& mask, EpAttention* a) {
  if (!is_plain(mask, 4)) return false;
  int32_t sizes[4];
  for (int axis = 0; axis < 4; ++axis) sizes[axis] = static_cast<int32_t>(mask.size(axis));
  return ep_attention_set_mask(a, mask.const_data_ptr<float>(), sizes);
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
bool run(EpAttention a, edgeprune::RuntimeThreads& threads) {
  const size_t bytes = kKernel->workspace_bytes(&a), parts = kKernel->parts_bytes(&a);
  char* memory = static_cast<char*>(malloc(parts + bytes * a.threads));
  if (!memory) return false;
  a.parts = reinterpret_cast<float*>(memory);
  const auto run = [&](int part, int first, int last) {
    kKernel->run(&a, first, last, memory + parts + part * bytes);
  };
  const bool done = edgeprune::share(threads, a.threads, kKernel->steps(&a), run);
  if (done) kKernel->merge(&a);
  free(memory);
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
