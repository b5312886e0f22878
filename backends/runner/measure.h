// How models are run, timed and weighed; docs/measuring.md says why.
#ifndef EDGEPRUNE_RUNNER_MEASURE_H
#define EDGEPRUNE_RUNNER_MEASURE_H

#include <string>

#include "job.h"

namespace edgeprune {

// The answer to a job, as JSON; progress goes to standard output, a line of JSON at a time.
std::string answer(const Job& job);

}  // namespace edgeprune

#endif
