// A call, shared among threads.
#ifndef EDGEPRUNE_LITERT_SHARE_H
#define EDGEPRUNE_LITERT_SHARE_H

#include "op.h"
#include "pool.h"

constexpr size_t kLine = 64;

// How many of those offered are worth waking.
int threads_for(const Call& call, int offered);

size_t workspace_bytes(const Call& call, int threads);

void run_shared(const Op& op, const Call& call, int threads, void* workspace, Pool* pool);

#endif
