#include "share.h"

namespace {

// Takes 12 us on the reference machine: attention over 128 tokens is shared, over 16 it is not.
constexpr double kWorkPerThread = 2e6;

size_t whole_lines(size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

struct Share {
  const Op& op;
  const Call& call;
  int phase;
  int threads;
  void *shared, *own;
};

void run_share(void* task, int32_t thread) {
  const auto& share = *static_cast<const Share*>(task);
  const int64_t steps = share.call.steps[share.phase];
  char* own = static_cast<char*>(share.own) + whole_lines(share.call.own_bytes) * thread;
  share.op.run(share.call, share.phase, static_cast<int32_t>(steps * thread / share.threads),
               static_cast<int32_t>(steps * (thread + 1) / share.threads), {share.shared, own});
}

}  // namespace

int threads_for(const Call& call, int offered) {
  const int most = offered < kMostThreads ? offered : kMostThreads;
  const double worth = call.work / kWorkPerThread;
  const int threads = worth < most ? static_cast<int>(worth) : most;
  return threads < 1 ? 1 : threads;
}

size_t workspace_bytes(const Call& call, int threads) {
  return whole_lines(call.shared_bytes) + whole_lines(call.own_bytes) * threads;
}

void run_shared(const Op& op, const Call& call, int threads, void* workspace, Pool* pool) {
  char* own = static_cast<char*>(workspace) + whole_lines(call.shared_bytes);
  for (int phase = 0; phase < 2; ++phase) {
    Share share{op, call, phase, threads, workspace, own};
    if (call.steps[phase]) run_parts(pool, threads, run_share, &share);
  }
}
