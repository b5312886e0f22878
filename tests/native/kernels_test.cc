// Every kernel that this processor runs, against its reference: kernels_test CASES KERNEL...
#include "check.h"

int main(int count, char** words) {
  const int cases = count > 1 ? atoi(words[1]) : 0;
  if (cases < 1 || count < 3) {
    fprintf(stderr, "usage: kernels_test CASES KERNEL...\n");
    return 2;
  }
  bool good = true;
  for (const Check* check : Check::all())
    for (int i = 2; i < count; ++i) {
      const double worst = check->run(words[i], cases);
      if (worst < 0) {
        printf("%s %s: not on this processor\n", check->family, words[i]);
        continue;
      }
      const bool within = worst <= check->tolerance;
      printf("%s %s: worst error %.2g over %d cases, %s %.2g\n", check->family, words[i], worst,
             cases, within ? "within" : "BEYOND", check->tolerance);
      good = good && within;
    }
  return good ? 0 : 1;
}
