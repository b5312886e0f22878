#include "system.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "fail.h"

namespace edgeprune {
namespace {

const char kThermal[] = "/sys/class/thermal/";

std::string first_line(const std::string& path) {
  FILE* file = fopen(path.c_str(), "r");
  if (!file) return "";
  char line[256] = "";
  if (fgets(line, sizeof line, file)) line[strcspn(line, "\n")] = 0;
  fclose(file);
  return line;
}

std::string of_cpu(int cpu, const char* name) {
  return first_line("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/cpufreq/" + name);
}

std::vector<std::string> thermal_zones() {
  std::vector<std::string> found;
  DIR* folder = opendir(kThermal);
  if (!folder) return found;
  while (const dirent* entry = readdir(folder))
    if (!strncmp(entry->d_name, "thermal_zone", 12))
      found.push_back(std::string(kThermal) + entry->d_name + "/temp");
  closedir(folder);
  return found;
}

// A phone's battery, which cools down last, else the hottest zone; some zones say nonsense.
double temperature_mc() {
  const std::string tenths = first_line("/sys/class/power_supply/battery/temp");
  if (!tenths.empty()) return atof(tenths.c_str()) * 100;
  static const std::vector<std::string> zones = thermal_zones();
  double hottest = NAN;
  for (const std::string& zone : zones) {
    const std::string said = first_line(zone);
    const double value = said.empty() ? NAN : atof(said.c_str());
    if (value > -20e3 && value < 150e3 && !(value <= hottest)) hottest = value;
  }
  return hottest;
}

// Where there is no cpufreq, as in most virtual machines.
double cpuinfo_khz(int cpu) {
  FILE* file = fopen("/proc/cpuinfo", "r");
  if (!file) return NAN;
  double found = NAN, megahertz;
  char line[4096];
  for (int seen = -1; isnan(found) && fgets(line, sizeof line, file);) {
    if (!strncmp(line, "processor", 9)) ++seen;
    if (seen == cpu && sscanf(line, "cpu MHz : %lf", &megahertz) == 1) found = megahertz * 1e3;
  }
  fclose(file);
  return found;
}

int64_t status_bytes(const char* key) {
  FILE* file = fopen("/proc/self/status", "r");
  if (!file) return 0;
  long long kilobytes = 0;
  char line[256];
  while (fgets(line, sizeof line, file))
    if (!strncmp(line, key, strlen(key))) sscanf(line + strlen(key), ": %lld", &kilobytes);
  fclose(file);
  return kilobytes * 1024;
}

}  // namespace

double now_s() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

Moment look(int cpu) {
  static const double began = now_s();
  const std::string kilohertz = of_cpu(cpu, "scaling_cur_freq");
  return {now_s() - began, kilohertz.empty() ? cpuinfo_khz(cpu) : atof(kilohertz.c_str()),
          temperature_mc()};
}

std::string governor(int cpu) { return of_cpu(cpu, "scaling_governor"); }

void pin(const std::vector<int>& cpus) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int cpu : cpus) {
    if (cpu >= CPU_SETSIZE) fail("cpus", "there is no processor " + std::to_string(cpu));
    CPU_SET(cpu, &set);
  }
  if (!cpus.empty() && sched_setaffinity(0, sizeof set, &set)) fail("cpus", strerror(errno));
}

std::vector<int> affinity() {
  cpu_set_t set;
  std::vector<int> found;
  if (sched_getaffinity(0, sizeof set, &set)) return found;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &set)) found.push_back(cpu);
  return found;
}

void end_after(double seconds) {
  if (seconds <= 0) return;
  signal(SIGALRM, [](int) {
    static const char words[] = "runner: limit: the job took longer\n";
    if (write(2, words, sizeof words - 1) >= 0) _exit(124);
    _exit(124);
  });
  itimerval after = {};
  after.it_value.tv_sec = static_cast<time_t>(seconds);
  after.it_value.tv_usec = static_cast<suseconds_t>(1e6 * (seconds - floor(seconds)));
  setitimer(ITIMER_REAL, &after, nullptr);
}

void forget(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY);
  if (file < 0) return;
  fsync(file);
  posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
  close(file);
}

int64_t resident_bytes() { return status_bytes("VmRSS"); }
int64_t peak_bytes() { return status_bytes("VmHWM"); }

void start_peak() {
  const int file = open("/proc/self/clear_refs", O_WRONLY);
  if (file < 0) return;
  if (write(file, "5", 1) != 1) perror("runner: /proc/self/clear_refs");
  close(file);
}

}  // namespace edgeprune
