// Kernels against their references on this processor: kernels_test CASES FAMILY:KERNEL...
#include <string>

#include "check.h"

namespace {

const Check* check_of(const std::string& family) {
  for (const Check* check : Check::all())
    if (family == check->family) return check;
  return nullptr;
}

// False where the error is beyond what is allowed, or nothing checks such kernels.
bool good(const std::string& family, const std::string& kernel, int cases) {
  const Check* check = check_of(family);
  if (!check) {
    printf("%s: NO CHECK\n", family.c_str());
    return false;
  }
  const double worst = check->run(kernel.c_str(), cases);
  printf("%s %s: ", family.c_str(), kernel.c_str());
  if (worst < 0) {
    printf("not on this processor\n");
    return true;
  }
  const bool within = worst <= check->tolerance;
  printf("worst error %.2g over %d cases, %s %.2g\n", worst, cases, within ? "within" : "BEYOND",
         check->tolerance);
  return within;
}

}  // namespace

int main(int count, char** words) {
  setvbuf(stdout, nullptr, _IOLBF, 0);  // what was said before a crash is seen
  const int cases = count > 2 ? atoi(words[1]) : 0;
  if (cases < 1) {
    fprintf(stderr, "usage: kernels_test CASES FAMILY:KERNEL...\n");
    return 2;
  }
  bool all_good = true;
  for (int i = 2; i < count; ++i) {
    const std::string word = words[i];
    const size_t colon = word.find(':');
    const std::string kernel = colon == std::string::npos ? "" : word.substr(colon + 1);
    all_good = good(word.substr(0, colon), kernel, cases) && all_good;
  }
  return all_good ? 0 : 1;
}
