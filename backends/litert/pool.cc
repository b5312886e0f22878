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

// Loads and stores are all that threads share. What adds or exchanges is, for old Arm processors, a
// function of a library that comes with the NDK.
uint32_t now(const uint32_t& word) { return __atomic_load_n(&word, __ATOMIC_ACQUIRE); }

void tell(uint32_t* word, uint32_t value) {
  __atomic_store_n(word, value, __ATOMIC_RELEASE);
  syscall(kFutex, word, kWake, INT32_MAX);
}

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

void* serve(void* self) {
  auto* thread = static_cast<Pool::Thread*>(self);
  Pool* pool = thread->pool;
  for (uint32_t round = thread->done;; tell(&thread->done, round)) {
    wait_while(&pool->round, round++);
    if (!pool->parts) return nullptr;
    if (thread->part < pool->parts) pool->work(pool->task, thread->part);
  }
}

// One that does not start is done without.
void start(Pool* pool, int32_t wanted) {
  while (pool->count < wanted) {
    Pool::Thread* thread = &pool->threads[pool->count];
    *thread = {pool, pool->count, pool->round, 0};
    if (pthread_create(&thread->id, nullptr, serve, thread)) return;
    ++pool->count;
  }
}

}  // namespace

void run_parts(Pool* pool, int32_t parts, void (*work)(void* task, int32_t part), void* task) {
  int32_t first = 0;
  const bool shared = parts > 1 && !pthread_mutex_trylock(pool->taken);
  if (shared) {
    start(pool, (parts < kMostThreads ? parts : kMostThreads) - 1);
    first = pool->count < parts ? pool->count : parts - 1;
    pool->parts = first;
    pool->work = work;
    pool->task = task;
    tell(&pool->round, pool->round + 1);
  }
  for (int32_t part = first; part < parts; ++part) work(task, part);
  if (!shared) return;
  for (int32_t i = 0; i < pool->count; ++i) wait_while(&pool->threads[i].done, pool->round - 1);
  pthread_mutex_unlock(pool->taken);
}

void end_threads(Pool* pool) {
  pool->parts = 0;
  tell(&pool->round, pool->round + 1);
  for (int32_t i = 0; i < pool->count; ++i) pthread_join(pool->threads[i].id, nullptr);
}
