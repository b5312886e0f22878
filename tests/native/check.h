// What native tests share: random numbers, buffers whose edges are watched, a list of checks.
#ifndef EDGEPRUNE_TESTS_CHECK_H
#define EDGEPRUNE_TESTS_CHECK_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#include <sanitizer/asan_interface.h>
#endif
#endif
#ifndef ASAN_POISON_MEMORY_REGION
#define ASAN_POISON_MEMORY_REGION(start, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(start, bytes)
#endif

#define REQUIRE(condition)                                                    \
  do {                                                                        \
    if (!(condition)) {                                                       \
      fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
      abort();                                                                \
    }                                                                         \
  } while (0)

// The same numbers on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
  uint32_t next() {  // xorshift64*
    state_ ^= state_ >> 12, state_ ^= state_ << 25, state_ ^= state_ >> 27;
    return (state_ * 0x2545f4914f6cdd1dull) >> 32;
  }
  int between(int low, int high) { return low + static_cast<int>(next() % (high - low + 1)); }
  bool one_in(int n) { return next() % n == 0; }
  template <class T, size_t N>
  T pick(const T (&of)[N]) {
    return of[next() % N];
  }
  float normal() {  // nearly: the sum of twelve uniform numbers
    double sum = -6;
    for (int i = 0; i < 12; ++i) sum += next() / 4294967296.0;
    return static_cast<float>(sum);
  }

 private:
  uint64_t state_;
};

// An array that ends where a page begins that nobody may touch, so that one byte too far traps
// under every kind of processor, also for reads; what lies before it is compared at the end.
// Memory is taken when it is first written: arrays of gigabytes are cheap until then.
template <class T>
class Guarded {
 public:
  explicit Guarded(size_t count) : count_(count) {
    const size_t page = sysconf(_SC_PAGESIZE), bytes = count * sizeof(T);
    inside_ = (bytes + page - 1) / page * page;
    whole_ = inside_ + 2 * page;
    void* start =
        mmap(nullptr, whole_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    REQUIRE(start != MAP_FAILED);
    start_ = static_cast<char*>(start);
    first_ = start_ + page;
    if (inside_) REQUIRE(!mprotect(first_, inside_, PROT_READ | PROT_WRITE));
    slack_ = inside_ - bytes;
    memset(first_, kSlack, slack_);
    ASAN_POISON_MEMORY_REGION(first_, slack_);
  }
  Guarded(const Guarded&) = delete;
  ~Guarded() {
    ASAN_UNPOISON_MEMORY_REGION(first_, slack_);
    for (size_t i = 0; i < slack_; ++i) REQUIRE(first_[i] == kSlack);
    munmap(start_, whole_);
  }
  T* data() { return reinterpret_cast<T*>(first_ + slack_); }
  T& operator[](size_t i) { return data()[i]; }
  size_t size() const { return count_; }
  // As tensors that a runtime lends, or has mapped from a file.
  void forbid_writing() {
    if (inside_) REQUIRE(!mprotect(first_, inside_, PROT_READ));
  }
  // NaN, as floats.
  void spoil() {
    if (count_) memset(data(), 0xff, count_ * sizeof(T));
  }

 private:
  static constexpr char kSlack = 0x5a;
  size_t count_, inside_, whole_, slack_;
  char *start_, *first_;
};

// The largest difference, as a part of the largest wanted number, or of ``most`` where that is
// larger; infinite where only one is NaN.
inline double relative_error(const float* got, const float* wanted, size_t count,
                             double most = 1e-3) {
  double worst = 0;
  for (size_t i = 0; i < count; ++i)
    if (isfinite(wanted[i])) most = fmax(most, fabs(wanted[i]));
  for (size_t i = 0; i < count; ++i) {
    const bool same = got[i] == wanted[i] || (isnan(got[i]) && isnan(wanted[i]));
    const double off = fabs(static_cast<double>(got[i]) - wanted[i]) / most;
    worst = fmax(worst, same ? 0 : isfinite(off) ? off : INFINITY);
  }
  return worst;
}

// One family of kernels; a file adds its own with a static ``Check``.
struct Check {
  const char* family;
  double tolerance;  // of the error that ``run`` returns
  // The worst error of the kernel of that name over ``cases`` random calls; negative: this
  // processor does not run it.
  double (*run)(const char* kernel, int cases);

  Check(const char* family, double tolerance, double (*run)(const char*, int))
      : family(family), tolerance(tolerance), run(run) {
    all().push_back(this);
  }
  static std::vector<const Check*>& all() {
    static std::vector<const Check*> list;
    return list;
  }
};

#endif
