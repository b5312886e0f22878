// Threads that wait for work between calls: the runtime lends delegates none of its own, and to
// start one takes as long as half a layer.
#ifndef EDGEPRUNE_LITERT_POOL_H
#define EDGEPRUNE_LITERT_POOL_H

#include <stdint.h>

constexpr int kMostThreads = 16;

struct Pool {
  alignas(8) char taken[64];  // by a call: a mutex, which is 40 or 48 zeros
  uint32_t round;             // of work; threads wait for the next
  int32_t count;              // of threads
  int32_t parts;              // of this round that threads take; 0: they end
  void (*work)(void* task, int32_t part);
  void* task;
  struct Thread {
    Pool* pool;
    int32_t part;
    uint32_t done;  // the last round that it has finished
    unsigned long id;
  } threads[kMostThreads - 1];
};

// work(task, part) for every part below ``parts``, each once. The caller takes those that have no
// thread: all of them while another call has the pool.
void run_parts(Pool* pool, int32_t parts, void (*work)(void* task, int32_t part), void* task);

// Ends the threads; no call may be running.
void end_threads(Pool* pool);

#endif
