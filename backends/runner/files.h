// Files, read and written whole.
#ifndef EDGEPRUNE_RUNNER_FILES_H
#define EDGEPRUNE_RUNNER_FILES_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <string>
#include <vector>

#include "fail.h"

namespace edgeprune {

inline std::vector<uint8_t> read_file(const std::string& path) {
  FILE* file = fopen(path.c_str(), "rb");
  if (!file) fail(path, strerror(errno));
  std::vector<uint8_t> bytes;
  uint8_t part[65536];
  for (size_t count; (count = fread(part, 1, sizeof part, file)) > 0;)
    bytes.insert(bytes.end(), part, part + count);
  if (ferror(file)) fail(path, strerror(errno));
  fclose(file);
  return bytes;
}

// A file that is written to bit by bit; a full disk ends the program.
class Writing {
 public:
  explicit Writing(const std::string& path) : path_(path), file_(fopen(path.c_str(), "wb")) {
    if (!file_) fail(path_, strerror(errno));
  }
  void add(const void* bytes, size_t count) {
    if (fwrite(bytes, 1, count, file_) != count) fail(path_, strerror(errno));
  }
  void close() {
    if (fclose(file_)) fail(path_, strerror(errno));
  }

 private:
  std::string path_;
  FILE* file_;
};

}  // namespace edgeprune

#endif
