#include "job.h"

#include <stdlib.h>

#include <algorithm>
#include <functional>
#include <map>

#include "fail.h"
#include "files.h"

namespace edgeprune {
namespace {

using Words = std::vector<std::string>;

std::string decoded(const std::string& word) {
  std::string plain;
  for (size_t i = 0; i < word.size(); ++i) {
    char* end = nullptr;
    const std::string digits = word[i] == '%' ? word.substr(i + 1, 2) : "";
    const long letter = strtol(digits.c_str(), &end, 16);
    if (digits.size() == 2 && !*end) {
      plain += static_cast<char>(letter);
      i += 2;
    } else {
      plain += word[i];
    }
  }
  return plain;
}

Words split(const std::string& text, char at) {
  Words parts;
  for (size_t start = 0; start <= text.size();) {
    const size_t end = std::min(text.find(at, start), text.size());
    if (end > start) parts.push_back(text.substr(start, end - start));
    start = end + 1;
  }
  return parts;
}

double number(const std::string& word) {
  char* end = nullptr;
  const double value = strtod(word.c_str(), &end);
  if (word.empty() || *end || !isfinite(value)) fail("job", "'" + word + "' is no number");
  return value;
}

int count(const std::string& word) {
  const double value = number(word);
  if (value != floor(value) || value < 0 || value > 1e9)
    fail("job", "got " + word + ", wanted a count");
  return static_cast<int>(value);
}

ModelJob model(const Words& words) {
  ModelJob made{decoded(words[0]), decoded(words[1]), "", {}};
  if (words[2] != "-") made.signature = decoded(words[2]);
  for (size_t i = 3; i < words.size(); ++i) {
    const size_t colon = words[i].find(':');
    if (colon == std::string::npos) fail("job", "input '" + words[i] + "' is no TYPE:FILE");
    made.inputs.push_back({words[i].substr(0, colon), decoded(words[i].substr(colon + 1))});
  }
  return made;
}

struct Key {
  size_t words;  // at least
  std::function<void(Job&, const Words&)> set;
};

const std::map<std::string, Key>& keys() {
  static const std::map<std::string, Key> known = {
      {"kind", {1, [](Job& job, const Words& w) { job.kind = w[0]; }}},
      {"runtime", {1, [](Job& job, const Words& w) { job.runtime = w[0]; }}},
      {"library", {1, [](Job& job, const Words& w) { job.libraries.push_back(decoded(w[0])); }}},
      {"threads", {1, [](Job& job, const Words& w) { job.threads = count(w[0]); }}},
      {"cpus",
       {1,
        [](Job& job, const Words& w) {
          for (const std::string& cpu : split(w[0], ',')) job.cpus.push_back(count(cpu));
        }}},
      {"rounds", {1, [](Job& job, const Words& w) { job.rounds = count(w[0]); }}},
      {"seconds", {1, [](Job& job, const Words& w) { job.seconds = number(w[0]); }}},
      {"warmup",
       {3,
        [](Job& job, const Words& w) {
          job.window = count(w[0]);
          job.warmup_within = number(w[1]);
          job.warmup_seconds = number(w[2]);
        }}},
      {"temperature",
       {4,
        [](Job& job, const Words& w) {
          job.temperature = number(w[0]);
          job.cool_step = number(w[1]);
          job.cool_fall = number(w[2]);
          job.cool_limit = number(w[3]);
        }}},
      {"limit", {1, [](Job& job, const Words& w) { job.limit = number(w[0]); }}},
      {"outputs", {1, [](Job& job, const Words& w) { job.outputs = decoded(w[0]); }}},
      {"model", {3, [](Job& job, const Words& w) { job.models.push_back(model(w)); }}},
  };
  return known;
}

void check(const Job& job) {
  if (job.models.empty()) fail("job", "names no model");
  if (job.threads < 1 || job.rounds < 1 || job.window < 1)
    fail("job", "threads, rounds and the warm-up's window start at 1");
  if (job.kind != "measure" && job.models.size() > 1)
    fail("job", "'" + job.kind + "' takes one model, got " + std::to_string(job.models.size()));
}

}  // namespace

Job read_job(const std::string& path) {
  const std::vector<uint8_t> bytes = read_file(path);
  Job job;
  for (const std::string& line : split(std::string(bytes.begin(), bytes.end()), '\n')) {
    Words words = split(line, ' ');
    if (words.empty()) continue;
    const auto key = keys().find(words[0]);
    if (key == keys().end()) fail(path, "there is no key '" + words[0] + "'");
    words.erase(words.begin());
    if (words.size() < key->second.words) fail(path, "'" + line + "' is not complete");
    key->second.set(job, words);
  }
  check(job);
  return job;
}

}  // namespace edgeprune
