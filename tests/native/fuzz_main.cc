// Feeds a fuzz harness the same random inputs on every machine, where libFuzzer is not:
// fuzz_NAME INPUTS
#include "check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int main(int count, char** words) {
  const int inputs = count == 2 ? atoi(words[1]) : 0;
  if (inputs < 1) {
    fprintf(stderr, "usage: %s INPUTS\n", words[0]);
    return 2;
  }
  for (int i = 0; i < inputs; ++i) {
    Random random(i);
    // A copy of exactly its size, so that one byte too far is seen.
    Guarded<uint8_t> data(random.between(0, random.one_in(4) ? 4096 : 64));
    for (size_t at = 0; at < data.size(); ++at) data[at] = random.next() >> 24;
    LLVMFuzzerTestOneInput(data.data(), data.size());
  }
  printf("%d inputs: nothing found\n", inputs);
}
