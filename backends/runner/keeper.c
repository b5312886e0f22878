// Keeps a work folder on a device, and cleans up there whatever becomes of the connection. Static,
// so that one build runs on every Linux and on Android:
//   keeper facts FOLDER                          what the system tells of itself
//   keeper hold FOLDER LOCK OWNER SILENCE_S      a session; it ends when stdin does, or is silent
//   keeper receive FOLDER PLACE SHA256 BYTES     a file from stdin, if it is not there already
//   keeper change FOLDER NAME COUNT UNDO... DO... runs DO; the session's end runs UNDO
//   keeper run FOLDER LIMIT_S PROGRAM...         in FOLDER/session, killed with all it started
// Kept are FOLDER/cache and this program; FOLDER/session is gone after a session, as are the
// processes in FOLDER/running and the settings in FOLDER/changed. What a session that was killed
// left, as by a power cut, the next one clears away.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <glob.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// Exit codes, those of sysexits.h and of timeout(1) where they have one.
enum { FAILED = 1, DAMAGED = 65, FULL = 73, BUSY = 75, OVERTIME = 124, LOST = 125, MISSING = 127 };

#define MIB (1024ull * 1024)
static const unsigned long long LEAVE_FREE = 32 * MIB, KEEP_CACHED = 512 * MIB;
static const int UNDO_LIMIT_S = 20;

__attribute__((format(printf, 2, 3))) static _Noreturn void fail(int code, const char* why, ...) {
  va_list rest;
  va_start(rest, why);
  fputs("keeper: ", stderr);
  vfprintf(stderr, why, rest);
  fputc('\n', stderr);
  exit(code);
}

static _Noreturn void fail_at(const char* place) {
  int full = errno == ENOSPC || errno == EDQUOT;
  fail(full ? FULL : FAILED, "%s: %s", place, strerror(errno));
}

static void make_folders(const char* path) {
  char part[4096];
  if (snprintf(part, sizeof part, "%s", path) >= (int)sizeof part) fail(FAILED, "path too long");
  for (char* slash = part + 1; (slash = strchr(slash, '/')); *slash++ = '/') {
    *slash = 0;
    if (mkdir(part, 0755) && errno != EEXIST) fail_at(part);
  }
  if (mkdir(part, 0755) && errno != EEXIST) fail_at(part);
}

static void enter(const char* folder) {
  make_folders(folder);
  if (chdir(folder)) fail_at(folder);
  make_folders("running");
  make_folders("changed");
  make_folders("cache");
}

// SHA-256, FIPS 180-4.

struct sha256 {
  uint32_t state[8];
  uint64_t bytes;
  uint8_t block[64];
};

static const uint32_t ROUND[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t turned(uint32_t x, int by) { return x >> by | x << (32 - by); }

static void sha256_block(struct sha256* sum) {
  uint32_t w[64], v[8];
  for (int i = 0; i < 16; ++i) {
    const uint8_t* b = sum->block + 4 * i;
    w[i] = (uint32_t)b[0] << 24 | b[1] << 16 | b[2] << 8 | b[3];
  }
  for (int i = 16; i < 64; ++i) {
    uint32_t a = w[i - 15], b = w[i - 2];
    w[i] = w[i - 16] + (turned(a, 7) ^ turned(a, 18) ^ a >> 3) + w[i - 7] +
           (turned(b, 17) ^ turned(b, 19) ^ b >> 10);
  }
  memcpy(v, sum->state, sizeof v);
  for (int i = 0; i < 64; ++i) {
    uint32_t one = v[7] + (turned(v[4], 6) ^ turned(v[4], 11) ^ turned(v[4], 25)) +
                   ((v[4] & v[5]) ^ (~v[4] & v[6])) + ROUND[i] + w[i];
    uint32_t two = (turned(v[0], 2) ^ turned(v[0], 13) ^ turned(v[0], 22)) +
                   ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
    memmove(v + 1, v, 7 * sizeof *v);
    v[4] += one;
    v[0] = one + two;
  }
  for (int i = 0; i < 8; ++i) sum->state[i] += v[i];
}

static struct sha256 sha256_start(void) {
  return (struct sha256){{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c,
                          0x1f83d9ab, 0x5be0cd19},
                         0,
                         {0}};
}

static void sha256_add(struct sha256* sum, const uint8_t* data, size_t count) {
  while (count > 0) {
    size_t held = sum->bytes % 64, taken = count < 64 - held ? count : 64 - held;
    memcpy(sum->block + held, data, taken);
    sum->bytes += taken;
    data += taken;
    count -= taken;
    if (sum->bytes % 64 == 0) sha256_block(sum);
  }
}

static void sha256_end(struct sha256* sum, char text[65]) {
  uint64_t bits = sum->bytes * 8;
  sha256_add(sum, (const uint8_t*)"\x80", 1);
  while (sum->bytes % 64 != 56) sha256_add(sum, (const uint8_t*)"", 1);
  uint8_t length[8];
  for (int i = 0; i < 8; ++i) length[i] = (uint8_t)(bits >> (56 - 8 * i));
  sha256_add(sum, length, 8);
  for (int i = 0; i < 8; ++i) sprintf(text + 8 * i, "%08x", sum->state[i]);
}

// Clearing away.

static int remove_one(const char* path, const struct stat* info, int kind, struct FTW* place) {
  (void)info, (void)kind, (void)place;
  return remove(path);
}

static void remove_tree(const char* path) { nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS); }

static size_t read_file(const char* path, char* text, size_t room) {
  int file = open(path, O_RDONLY | O_CLOEXEC);
  size_t held = 0;
  for (ssize_t got; file >= 0 && held < room - 1; held += (size_t)got)
    if ((got = read(file, text + held, room - 1 - held)) <= 0) break;
  text[held] = 0;
  if (file >= 0) close(file);
  return held;
}

static void write_file(const char* path, const char* data, size_t count) {
  int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file < 0) fail_at(path);
  if (write(file, data, count) != (ssize_t)count || fsync(file)) {
    if (errno == 0) errno = ENOSPC;  // a short write
    unlink(path);
    fail_at(path);
  }
  close(file);
}

// What a process is known by besides its number, which others get after it, or after a reboot:
// when it was started, and the start of the system. Empty if there is no such process.
static void identify(pid_t pid, char text[128]) {
  char path[64], stat[1024], boot[64];
  snprintf(path, sizeof path, "/proc/%d/stat", pid);
  text[0] = 0;
  if (!read_file(path, stat, sizeof stat)) return;
  read_file("/proc/sys/kernel/random/boot_id", boot, sizeof boot);
  boot[strcspn(boot, "\n")] = 0;
  char* field = strrchr(stat, ')');  // a name may have spaces and brackets; field 3 follows
  for (int number = 2; field && number < 22; ++number) field = strchr(field + 1, ' ');
  unsigned long long started = field ? strtoull(field, NULL, 10) : 0;
  snprintf(text, 128, "%s %llu", boot, started);
}

static void kill_group(const char* name) {
  char path[300], noted[128], now[128];
  snprintf(path, sizeof path, "running/%s", name);
  read_file(path, noted, sizeof noted);
  pid_t group = atoi(name);
  identify(group, now);
  if (group > 1 && !strcmp(noted, now)) kill(-group, SIGKILL);
  unlink(path);
}

// Runs words that NULs end, and waits; whether they ended well.
static int undone(char* words, size_t count) {
  char* list[64] = {0};
  int number = 0;
  for (char* word = words; word < words + count && number < 63; word += strlen(word) + 1)
    list[number++] = word;
  if (!number) return 1;
  pid_t child = fork();
  if (child == 0) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    alarm((unsigned)UNDO_LIMIT_S);
    int nothing = open("/dev/null", O_RDWR);
    for (int stream = 0; stream < 3; ++stream) dup2(nothing, stream);
    execvp(list[0], list);
    _exit(MISSING);
  }
  int status = 1;
  while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR);
  return child > 0 && status == 0;
}

static void undo(const char* name) {
  char path[300], words[4096];
  snprintf(path, sizeof path, "changed/%s", name);
  size_t count = read_file(path, words, sizeof words);
  if (undone(words, count))
    unlink(path);
  else
    printf("not undone: %s\n", name);  // the next session tries again
}

static void each_in(const char* folder, void (*act)(const char* name)) {
  struct dirent** found;
  int count = scandir(folder, &found, NULL, alphasort);
  while (count-- > 0) {  // the last change is the first that is undone
    if (found[count]->d_name[0] != '.') act(found[count]->d_name);
    free(found[count]);
  }
  if (count >= -1) free(found);
}

static void clear(void) {
  each_in("running", kill_group);
  each_in("changed", undo);
  remove_tree("session");
}

// The cache: a folder for each thing, touched when it is used.

struct cached {
  char path[300];
  time_t used;
  unsigned long long bytes;
};

static unsigned long long counted;

static int count_one(const char* path, const struct stat* info, int kind, struct FTW* place) {
  (void)path, (void)kind, (void)place;
  counted += (unsigned long long)info->st_blocks * 512;
  return 0;
}

static int by_use(const void* one, const void* two) {
  time_t a = ((const struct cached*)one)->used, b = ((const struct cached*)two)->used;
  return (a > b) - (a < b);
}

// Removes what was not used for longest until `bytes` at most are left, but nothing that this
// session has used.
static void trim_cache(unsigned long long bytes) {
  static struct cached things[4096];
  size_t number = 0;
  unsigned long long held = 0;
  struct stat session;
  int in_session = !stat("session/.since", &session);
  DIR* folder = opendir("cache");
  for (struct dirent* entry; folder && number < 4096 && (entry = readdir(folder));) {
    struct stat info;
    struct cached* thing = &things[number];
    snprintf(thing->path, sizeof thing->path, "cache/%s", entry->d_name);
    if (entry->d_name[0] == '.' || stat(thing->path, &info)) continue;
    counted = 0;
    nftw(thing->path, count_one, 16, FTW_PHYS);
    held += thing->bytes = counted;
    thing->used = info.st_mtime;
    ++number;
  }
  if (folder) closedir(folder);
  qsort(things, number, sizeof *things, by_use);
  for (size_t i = 0; i < number && held > bytes; held -= things[i++].bytes) {
    if (in_session && things[i].used >= session.st_mtime) break;
    remove_tree(things[i].path);
  }
}

// A session.

static int watched(int child_too) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGHUP);
  sigaddset(&set, SIGPIPE);
  if (child_too) sigaddset(&set, SIGCHLD);
  sigprocmask(SIG_BLOCK, &set, NULL);
  return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

// Anybody may take the lock, so that two users do not measure at once. A file in a folder for all
// is opened by others only without O_CREAT.
static int take(const char* path, const char* owner) {
  int file = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
  if (file < 0 && errno == ENOENT) {
    file = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file >= 0) fchmod(file, 0666);
    if (file < 0 && errno == EEXIST) file = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
  }
  if (file < 0) fail_at(path);
  if (flock(file, LOCK_EX | LOCK_NB)) {
    char who[512];
    read_file(path, who, sizeof who);
    fail(BUSY, "%s", who[0] ? who : "somebody");
  }
  char noted[512], when[64];
  time_t now = time(NULL);
  strftime(when, sizeof when, "%Y-%m-%d %H:%M:%S UTC", gmtime(&now));
  int length = snprintf(noted, sizeof noted, "%s since %s", owner, when);
  if (ftruncate(file, 0) || pwrite(file, noted, (size_t)length, 0) < 0) errno = 0;
  return file;
}

static int hold(const char* lock, const char* owner, int silence_s) {
  int file = take(lock, owner), signals = watched(0);
  clear();
  trim_cache(KEEP_CACHED);
  make_folders("session");
  write_file("session/.since", "", 0);
  puts("held");
  fflush(stdout);
  for (;;) {
    struct pollfd from[] = {{0, POLLIN, 0}, {signals, POLLIN, 0}};
    int ready = poll(from, 2, silence_s * 1000);
    if (ready < 0 && errno == EINTR) continue;
    char beats[64];
    if (ready <= 0 || from[1].revents || read(0, beats, sizeof beats) <= 0) break;
  }
  clear();
  trim_cache(KEEP_CACHED);
  if (ftruncate(file, 0)) errno = 0;
  fflush(stdout);
  return 0;
}

static void check_held(void) {
  struct stat info;
  if (stat("session", &info)) fail(LOST, "the session has ended");
}

// Runs one program of a session.

static _Noreturn void become(char** words, int gate) {
  char opened;
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, NULL);
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  int nothing = open("/dev/null", O_RDONLY);
  if (read(gate, &opened, 1) != 1 || chdir("session") || dup2(nothing, 0)) _exit(LOST);
  execvp(words[0], words);
  fprintf(stderr, "keeper: %s: %s\n", words[0], strerror(errno));
  _exit(MISSING);
}

static long long now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000ll + now.tv_nsec / 1000000;
}

// Its exit code, or why it must be killed.
static int awaited(pid_t child, int signals, long long end_ms) {
  for (;;) {
    struct pollfd from[] = {{0, POLLIN, 0}, {signals, POLLIN, 0}};
    long long left = end_ms - now_ms();
    if (left <= 0) return OVERTIME;
    if (poll(from, 2, left > 60000 ? 60000 : (int)left) < 0 && errno != EINTR) return LOST;
    struct signalfd_siginfo caught;
    while (read(signals, &caught, sizeof caught) == sizeof caught)
      if (caught.ssi_signo != SIGCHLD && caught.ssi_signo != SIGPIPE) return LOST;
    int status;
    if (waitpid(child, &status, WNOHANG) == child)
      return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    char ignored[64];
    if (from[0].revents && read(0, ignored, sizeof ignored) <= 0) return LOST;
  }
}

static int run(int limit_s, char** words) {
  int signals = watched(1), gate[2];
  check_held();
  if (pipe2(gate, O_CLOEXEC)) fail_at("pipe");
  pid_t child = fork();
  if (child < 0) fail_at("fork");
  if (child == 0) {
    close(gate[1]);
    become(words, gate[0]);
  }
  char path[64], who[128];
  setpgid(child, child);
  identify(child, who);
  snprintf(path, sizeof path, "running/%d", child);
  write_file(path, who, strlen(who));  // before it starts; without it, closing the gate ends it
  if (write(gate[1], "", 1) != 1) fail_at("start");
  int code = awaited(child, signals, now_ms() + limit_s * 1000ll);
  kill(-child, SIGKILL);
  waitpid(child, NULL, 0);
  unlink(path);
  if (code == OVERTIME) fprintf(stderr, "keeper: killed after %d s\n", limit_s);
  return code;
}

static int change(const char* name, int count, char** words) {
  char undo_words[4096], path[300], part[300];
  size_t length = 0;
  check_held();
  for (int i = 0; i < count; ++i) {
    size_t size = strlen(words[i]) + 1;
    if (length + size > sizeof undo_words) fail(FAILED, "too many words");
    memcpy(undo_words + length, words[i], size);
    length += size;
  }
  snprintf(path, sizeof path, "changed/%s", name);
  snprintf(part, sizeof part, "changed/.%s", name);
  struct stat info;
  if (stat(path, &info)) {  // the first change of a setting knows how it was
    write_file(part, undo_words, length);
    if (rename(part, path)) fail_at(path);
  }
  execvp(words[count], words + count);
  fail(MISSING, "%s: %s", words[count], strerror(errno));
}

// Files.

static int is_there(const char* place, const char* wanted, unsigned long long bytes) {
  struct stat info;
  int file = open(place, O_RDONLY | O_CLOEXEC);
  if (file < 0) return 0;
  int same = !fstat(file, &info) && (unsigned long long)info.st_size == bytes;
  struct sha256 sum = sha256_start();
  static uint8_t data[65536];
  for (ssize_t got; same && (got = read(file, data, sizeof data)) > 0;)
    sha256_add(&sum, data, (size_t)got);
  char text[65];
  sha256_end(&sum, text);
  close(file);
  return same && !strcmp(text, wanted);
}

static unsigned long long free_bytes(void) {
  struct statvfs disk;
  return statvfs(".", &disk) ? 0 : (unsigned long long)disk.f_bavail * disk.f_frsize;
}

static void make_room(unsigned long long bytes) {
  if (free_bytes() < bytes + LEAVE_FREE) trim_cache(0);
  unsigned long long got = free_bytes();
  if (got < bytes + LEAVE_FREE)
    fail(FULL, "%llu MiB free, wanted %llu and %llu to spare", got / MIB, bytes / MIB + 1,
         LEAVE_FREE / MIB);
}

// Reads the file into `part`; why not, if not.
static int take_in(const char* part, const char* wanted, unsigned long long bytes) {
  int file = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755);
  if (file < 0) fail_at(part);
  struct sha256 sum = sha256_start();
  static uint8_t data[65536];
  int code = 0;
  while (bytes > 0 && !code) {
    size_t room = bytes < sizeof data ? (size_t)bytes : sizeof data;
    ssize_t got = read(0, data, room);
    if (got <= 0)
      code = LOST;
    else if (write(file, data, (size_t)got) != got)
      code = FULL;
    else
      sha256_add(&sum, data, (size_t)got), bytes -= (unsigned long long)got;
  }
  char text[65];
  sha256_end(&sum, text);
  if (!code && fsync(file)) code = FULL;
  if (!code && strcmp(text, wanted)) code = DAMAGED;
  close(file);
  return code;
}

static int receive(char* place, const char* wanted, unsigned long long bytes) {
  check_held();
  char* name = strrchr(place, '/');
  if (!name || place[0] == '/' || strstr(place, "..")) fail(FAILED, "%s: not a place here", place);
  int have = is_there(place, wanted, bytes);
  if (!have) make_room(bytes);
  *name = 0;
  make_folders(place);
  if (have) utimensat(AT_FDCWD, place, NULL, 0);
  *name = '/';
  puts(have ? "have" : "send");
  fflush(stdout);
  if (have) return 0;
  char part[64];
  snprintf(part, sizeof part, "session/.part-%d", getpid());
  int code = take_in(part, wanted, bytes);
  if (!code && rename(part, place)) fail_at(place);
  if (code) unlink(part);
  if (code == FULL) fputs("keeper: the disk is full\n", stderr);
  if (code == DAMAGED) fputs("keeper: another checksum than the file's\n", stderr);
  return code;
}

// What the system tells: a name and a value, each ended by NUL.

static void tell(const char* name, const char* value) {
  fwrite(name, 1, strlen(name) + 1, stdout);
  fwrite(value, 1, strlen(value) + 1, stdout);
}

static void tell_files(const char* pattern) {
  static char text[1 << 18];
  glob_t found;
  if (glob(pattern, 0, NULL, &found)) return;
  for (size_t i = 0; i < found.gl_pathc; ++i)
    if (read_file(found.gl_pathv[i], text, sizeof text)) tell(found.gl_pathv[i], text);
  globfree(&found);
}

static int facts(void) {
  static const char* const files[] = {"/proc/cpuinfo",
                                      "/proc/meminfo",
                                      "/proc/loadavg",
                                      "/proc/sys/kernel/arch",
                                      "/proc/device-tree/model",
                                      "/etc/os-release",
                                      "/sys/devices/system/cpu/cpu[0-9]*/cpu_capacity",
                                      "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq",
                                      "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq",
                                      "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor",
                                      "/sys/class/thermal/thermal_zone*/type",
                                      "/sys/class/thermal/thermal_zone*/temp",
                                      "/sys/class/power_supply/*/capacity",
                                      "/sys/class/power_supply/*/status"};
  struct utsname system;
  char text[4096] = "";
  if (!uname(&system)) {
    tell("machine", system.machine);
    snprintf(text, sizeof text, "%s %s", system.sysname, system.release);
    tell("system", text);
  }
  snprintf(text, sizeof text, "%llu", free_bytes());
  tell("free_bytes", text);
  cpu_set_t set;
  text[0] = 0;
  if (!sched_getaffinity(0, sizeof set, &set))
    for (int cpu = 0, at = 0; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(cpu, &set)) at += snprintf(text + at, sizeof text - (size_t)at, "%d ", cpu);
  tell("affinity", text);
  for (size_t i = 0; i < sizeof files / sizeof *files; ++i) tell_files(files[i]);
  return 0;
}

int main(int count, char** words) {
  if (count < 3) fail(FAILED, "wanted a command and a folder; see the head of keeper.c");
  const char* command = words[1];
  enter(words[2]);
  if (!strcmp(command, "facts") && count == 3) return facts();
  if (!strcmp(command, "hold") && count == 6) return hold(words[3], words[4], atoi(words[5]));
  if (!strcmp(command, "receive") && count == 6)
    return receive(words[3], words[4], strtoull(words[5], NULL, 10));
  if (!strcmp(command, "run") && count > 4) return run(atoi(words[3]), words + 4);
  if (!strcmp(command, "change") && count > 5 && atoi(words[4]) < count - 5)
    return change(words[3], atoi(words[4]), words + 5);
  fail(FAILED, "%s: no such command, or other words than it takes", command);
}
