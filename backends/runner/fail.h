// How the runner ends when something is wrong: one line on standard error, `runner: WHAT: WHY`.
#ifndef EDGEPRUNE_RUNNER_FAIL_H
#define EDGEPRUNE_RUNNER_FAIL_H

#include <stdio.h>
#include <unistd.h>

#include <string>

namespace edgeprune {

// Without destructors: a runtime whose load failed half-way need not survive them.
[[noreturn]] inline void fail(const std::string& what, const std::string& why) {
  fflush(stdout);
  fprintf(stderr, "runner: %s: %s\n", what.c_str(), why.c_str());
  fflush(stderr);
  _exit(1);
}

}  // namespace edgeprune

#endif
