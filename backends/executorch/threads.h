// ExecuTorch's own thread pool, as regions and kernels use it.
#ifndef EDGEPRUNE_EXECUTORCH_THREADS_H
#define EDGEPRUNE_EXECUTORCH_THREADS_H

#include <executorch/runtime/kernel/thread_parallel_interface.h>

#include "../region/region.h"

namespace edgeprune {

class RuntimeThreads final : public Threads {
 public:
  int count() const override { return static_cast<int>(executorch::extension::get_thread_count()); }
  bool each(int parts, void (*work)(void* task, int part), void* task) override {
    return executorch::extension::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
      for (int64_t part = first; part < last; ++part) work(task, static_cast<int>(part));
    });
  }
};

}  // namespace edgeprune

#endif
