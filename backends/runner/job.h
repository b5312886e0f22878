// What the runner is asked to do.
//
// A job is text, one `key value...` a line; in words, `%20` stands for a space, as in addresses of
// pages. Paths are relative to the job's folder.
//
//   kind measure|memory|profile|run
//   runtime executorch|litert
//   library FILE                  LiteRT itself, and our delegate; any number
//   threads N                     of the runtime
//   cpus 4,5                      to run on; all if not given
//   rounds N                      of timed runs at least, and
//   seconds T                     at least so long
//   warmup WINDOW WITHIN SECONDS  till the medians of two windows of runs agree, or so long
//   temperature C STEP FALL LIMIT begin when no warmer; or when it does not fall by FALL in STEP
//                                 seconds, or after LIMIT
//   limit SECONDS                 end by then, whatever happens
//   outputs FOLDER                where `run` writes MODEL.OUTPUT, such as 0.0
//   model NAME FILE SIGNATURE TYPE:FILE...
//                                 and its inputs as raw numbers; SIGNATURE - is the first
#ifndef EDGEPRUNE_RUNNER_JOB_H
#define EDGEPRUNE_RUNNER_JOB_H

#include <math.h>

#include <string>
#include <vector>

namespace edgeprune {

struct InputFile {
  std::string type, file;
};

struct ModelJob {
  std::string name, file, signature;
  std::vector<InputFile> inputs;
};

struct Job {
  std::string kind, runtime, outputs = ".";
  std::vector<std::string> libraries;
  std::vector<ModelJob> models;
  std::vector<int> cpus;
  int threads = 1, rounds = 1, window = 5;
  double seconds = 0, warmup_within = 0.02, warmup_seconds = 2;
  double temperature = NAN, cool_step = 5, cool_fall = 0.2, cool_limit = 0, limit = 0;
};

// Ends the program where the job is not sound.
Job read_job(const std::string& path);

}  // namespace edgeprune

#endif
