#include "pool.h"

#include "system.h"

namespace {

// The next node often comes while they spin, and to wake a thread takes 5 to 50 us: with 500 turns
// an int8 MiniLM on two threads took 3.3 ms, with 1,500 as with 20,000 2.6. No longer than is
// needed, because XNNPACK's threads want the same processors.
constexpr int kSpins = 1500;
#ifdef __x86_64__
constexpr long kFutex = 202;
#else
constexpr long kFutex = 98;
#endif
constexpr int kWait = 128, kWake = 129;  // within this process

uint32_t now(const uint32_t& word) { return __atomic_load_n(&word, __ATOMIC_ACQUIRE); }

void pause() {
#ifdef __x86_64__
  __builtin_ia32_pause();
#else
  asm volatile("yield");
#endif
}

// Returns when the word is another.
void wait_while(const uint32_t* word, uint32_t value) {
  for (int i = 0; i < kSpins; ++i, pause())
    if (now(*word) != value) return;
  while (now(*word) == value) syscall(kFutex, word, kWait, value, nullptr);
}

void next_round(Pool* pool) {
  __atomic_add_fetch(&pool->round, 1, __ATOMIC_RELEASE);
  syscall(kFutex, &pool->round, kWake, INT32_MAX);
}

void* serve(void* self) {
  auto* thread = static_cast<Pool::Thread*>(self);
  Pool* pool = thread->pool;
  for (;;) {
    wait_while(&pool->round, thread->seen++);
    if (!pool->parts) return nullptr;
    if (thread->part < pool->parts) pool->work(pool->task, thread->part);
    if (!__atomic_sub_fetch(&pool->busy, 1, __ATOMIC_ACQ_REL))
      syscall(kFutex, &pool->busy, kWake, 1);
  }
}

// One that does not start is done without.
void start(Pool* pool, int32_t wanted) {
  while (pool->count < wanted) {
    Pool::Thread* thread = &pool->threads[pool->count];
    thread->pool = pool;
    thread->part = pool->count;
    thread->seen = pool->round;
    if (pthread_create(&thread->id, nullptr, serve, thread)) return;
    ++pool->count;
  }
}

}  // namespace

void run_parts(Pool* pool, int32_t parts, void (*work)(void* task, int32_t part), void* task) {
  int32_t first = 0;
  const bool shared = parts > 1 && !__atomic_exchange_n(&pool->taken, 1, __ATOMIC_ACQUIRE);
  if (shared) {
    start(pool, (parts < kMostThreads ? parts : kMostThreads) - 1);
    first = pool->count < parts ? pool->count : parts - 1;
    pool->parts = first;
    pool->work = work;
    pool->task = task;
    pool->busy = static_cast<uint32_t>(pool->count);
    next_round(pool);
  }
  for (int32_t part = first; part < parts; ++part) work(task, part);
  if (!shared) return;
  for (uint32_t busy; (busy = now(pool->busy));) wait_while(&pool->busy, busy);
  __atomic_store_n(&pool->taken, 0, __ATOMIC_RELEASE);
}

void end_threads(Pool* pool) {
  pool->parts = 0;
  next_round(pool);
  for (int32_t i = 0; i < pool->count; ++i) pthread_join(pool->threads[i].id, nullptr);
}
