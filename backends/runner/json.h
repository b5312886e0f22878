// JSON, written piece by piece.
#ifndef EDGEPRUNE_RUNNER_JSON_H
#define EDGEPRUNE_RUNNER_JSON_H

#include <math.h>
#include <stdio.h>

#include <string>
#include <vector>

namespace edgeprune::json {

inline std::string text(const std::string& value) {
  std::string written = "\"";
  for (const char letter : value) {
    char escaped[8];
    if (letter == '"' || letter == '\\') {
      written += '\\';
      written += letter;
    } else if (static_cast<unsigned char>(letter) < 0x20) {
      snprintf(escaped, sizeof escaped, "\\u%04x", letter);
      written += escaped;
    } else {
      written += letter;
    }
  }
  return written + "\"";
}

// Not a number: null.
inline std::string number(double value) {
  if (!isfinite(value)) return "null";
  char written[32];
  snprintf(written, sizeof written, "%.9g", value);
  return written;
}

template <class T, class F>
std::string list(const std::vector<T>& values, F write) {
  std::string written;
  for (const T& value : values) written += (written.empty() ? "" : ", ") + write(value);
  return "[" + written + "]";
}

inline std::string numbers(const std::vector<double>& values) { return list(values, number); }

class Object {
 public:
  // `value` is JSON.
  Object& add(const std::string& key, const std::string& value) {
    written_ += (written_.empty() ? "" : ", ") + text(key) + ": " + value;
    return *this;
  }
  std::string str() const { return "{" + written_ + "}"; }

 private:
  std::string written_;
};

}  // namespace edgeprune::json

#endif
