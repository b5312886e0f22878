// What Linux tells about the machine and this process; Android is one.
#ifndef EDGEPRUNE_RUNNER_SYSTEM_H
#define EDGEPRUNE_RUNNER_SYSTEM_H

#include <stdint.h>

#include <string>
#include <vector>

namespace edgeprune {

double now_s();  // a clock that nobody sets

// NAN where the machine does not tell.
struct Moment {
  double at_s;  // since the program began
  double frequency_khz, temperature_mc;
};

Moment look(int cpu);
std::string governor(int cpu);  // empty: it does not tell

void pin(const std::vector<int>& cpus);
std::vector<int> affinity();

// Ends the program by then, with code 124 as timeout(1) does.
void end_after(double seconds);

// Lets the system read a file anew: how much of a mapped one comes into memory depends on what of
// it lay there already.
void forget(const std::string& path);
// Memory of this process: what it has, and the most it had since `start_peak`.
int64_t resident_bytes();
int64_t peak_bytes();
void start_peak();

}  // namespace edgeprune

#endif
