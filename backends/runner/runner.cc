// Runs, times and weighs lowered files without Python or PyTorch, on a board, a phone or here:
//   runner JOB
// A job (job.h) may be measured by hand as well as by edgeprune. What was found is written to
// answer.json beside it, whole or not at all.
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "fail.h"
#include "files.h"
#include "job.h"
#include "measure.h"
#include "system.h"

using namespace edgeprune;

int main(int count, char** words) {
  if (count != 2) {
    fprintf(stderr, "usage: runner JOB\n");
    return 2;
  }
  const Job job = read_job(words[1]);
  // Threads that a runtime starts are pinned as the one that starts them.
  pin(job.cpus);
  end_after(job.limit);
  const std::string path = words[1];
  const std::string folder = path.substr(0, path.rfind('/') + 1);
  if (!folder.empty() && chdir(folder.c_str())) fail(folder, strerror(errno));
  const std::string found = answer(job);
  Writing file("answer.json.part");
  file.add(found.data(), found.size());
  file.close();
  if (rename("answer.json.part", "answer.json")) fail("answer.json", strerror(errno));
  // Not the destructors of a runtime: what they would free, the system does.
  fflush(stdout);
  _exit(0);
}
