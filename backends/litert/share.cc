#include "share.h"

#include "system.h"

namespace {

constexpr int kMostThreads = 16;
// To start a thread and wait for it takes 17 to 41 us on the reference machine, where this much
// takes 100.
constexpr double kWorkPerThread = 16e6;

size_t whole_lines(size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

struct Share {
  const Op* op;
  const Call* call;
  int phase;
  int32_t first, last;
  Workspace workspace;
};

void* run_share(void* shared) {
  const auto& share = *static_cast<const Share*>(shared);
  share.op->run(*share.call, share.phase, share.first, share.last, share.workspace);
  return nullptr;
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

// The runtime offers delegates no threads of its own; one that does not start is done without.
void run_shared(const Op& op, const Call& call, int threads, void* workspace) {
  char* own = static_cast<char*>(workspace) + whole_lines(call.shared_bytes);
  for (int phase = 0; phase < 2; ++phase) {
    Share shares[kMostThreads];
    unsigned long ids[kMostThreads];
    bool started[kMostThreads] = {};
    const int64_t steps = call.steps[phase];
    for (int t = 0; t < threads; ++t) {
      shares[t] = {&op,
                   &call,
                   phase,
                   static_cast<int32_t>(steps * t / threads),
                   static_cast<int32_t>(steps * (t + 1) / threads),
                   {workspace, own + whole_lines(call.own_bytes) * t}};
      started[t] = t && steps && !pthread_create(&ids[t], nullptr, run_share, &shares[t]);
    }
    for (int t = 0; t < threads && steps; ++t)
      if (!started[t]) run_share(&shares[t]);
    for (int t = 0; t < threads; ++t)
      if (started[t]) pthread_join(ids[t], nullptr);
  }
}
