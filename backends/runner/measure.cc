#include "measure.h"

#include <math.h>
#include <stdio.h>
#include <unistd.h>

#include <algorithm>
#include <map>

#include "fail.h"
#include "files.h"
#include "inputs.h"
#include "json.h"
#include "model.h"
#include "system.h"

namespace edgeprune {
namespace {

using json::Object;

// The system is looked at so often, and progress said; never within a run.
const double kLookSeconds = 1;
const int kMemoryRuns = 3;
const int kProfileWarmup = 3;

void say(Object line) {
  printf("%s\n", line.str().c_str());
  fflush(stdout);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 ? values[half] : (values[half - 1] + values[half]) / 2;
}

// A model of the job, and what is found out about it.
struct Subject {
  const ModelJob* job = nullptr;
  std::unique_ptr<Model> model = nullptr;
  Inputs inputs = {};
  double load_ms = NAN, first_run_ms = NAN, memory_bytes = NAN;
  int warmup_runs = 0;
  size_t rows = 1;
  std::vector<double> samples_ms = {};
  std::vector<std::string> operators = {};  // JSON
  bool profiled = false;
};

class Session {
 public:
  explicit Session(const Job& job)
      : job_(job), cpu_(affinity().empty() ? 0 : affinity()[0]), runtime_(open_runtime(job)) {}

  std::string answer() {
    cool();
    note();
    if (job_.kind == "measure") {
      measure();
    } else if (job_.kind == "memory") {
      weigh();
    } else if (job_.kind == "profile") {
      profile();
    } else if (job_.kind == "run") {
      run_rows();
    } else {
      fail("job", "there is no kind '" + job_.kind + "', only measure, memory, profile, run");
    }
    note();
    return written();
  }

 private:
  void note() { moments_.push_back(look(cpu_)); }

  // What it is then is the first moment: whoever reads the answer sees that it was hot.
  void cool() {
    const double began = now_s();
    double degrees = look(cpu_).temperature_mc / 1e3, before = INFINITY;
    while (degrees > job_.temperature && before - degrees >= job_.cool_fall &&
           cooled_s_ < job_.cool_limit) {
      say(Object()
              .add("stage", json::text("cool down"))
              .add("temperature_c", json::number(degrees)));
      usleep(static_cast<useconds_t>(1e6 * job_.cool_step));
      before = degrees;
      degrees = look(cpu_).temperature_mc / 1e3;
      cooled_s_ = now_s() - began;
    }
  }

  Subject load(const ModelJob& model, bool traced = false) {
    say(Object().add("stage", json::text("load")).add("model", json::text(model.name)));
    Subject made;
    made.job = &model;
    const double began = now_s();
    made.model = runtime_->load(model, traced);
    made.load_ms = (now_s() - began) * 1e3;
    made.inputs = Inputs(model, made.model->inputs());
    made.rows = made.inputs.rows();
    made.inputs.give(0, *made.model);
    return made;
  }

  static double timed_ms(Model& model) {
    const double began = now_s();
    model.run();
    return (now_s() - began) * 1e3;
  }

  // Till the medians of the last two windows agree.
  void warm_up(Subject& subject) {
    const double until = now_s() + job_.warmup_seconds;
    std::vector<double> before, window;
    do {
      before = window;
      window.clear();
      for (int i = 0; i < job_.window; ++i) window.push_back(timed_ms(*subject.model));
      subject.warmup_runs += job_.window;
    } while (now_s() < until && (before.empty() || fabs(median(window) - median(before)) >
                                                       job_.warmup_within * median(window)));
  }

  void measure() {
    for (const ModelJob& model : job_.models) subjects_.push_back(load(model));
    for (Subject& subject : subjects_) {
      check_one_row(subject);
      subject.first_run_ms = timed_ms(*subject.model);
    }
    say(Object().add("stage", json::text("warm up")));
    for (Subject& subject : subjects_) warm_up(subject);
    note();
    const double began = now_s();
    double looked = began;
    for (int round = 0; round < job_.rounds || now_s() - began < job_.seconds; ++round)
      for (Subject& subject : subjects_) {
        subject.samples_ms.push_back(timed_ms(*subject.model));
        if (now_s() - looked < kLookSeconds) continue;
        note();
        say(Object()
                .add("stage", json::text("measure"))
                .add("rounds", json::number(round))
                .add("seconds", json::number(now_s() - began)));
        looked = now_s();
      }
  }

  // Growth of the resident memory, from before loading to the most.
  void weigh() {
    forget(job_.models[0].file);
    start_peak();
    const int64_t before = resident_bytes();
    subjects_.push_back(load(job_.models[0]));
    check_one_row(subjects_[0]);
    for (int i = 0; i < kMemoryRuns; ++i) subjects_[0].model->run();
    subjects_[0].memory_bytes = static_cast<double>(std::max<int64_t>(0, peak_bytes() - before));
  }

  // Each operator: the median over runs of what its calls in a run took.
  void profile() {
    subjects_.push_back(load(job_.models[0], true));
    Subject& subject = subjects_[0];
    check_one_row(subject);
    std::map<std::string, std::vector<double>> taken;
    std::map<std::string, int> calls;
    std::vector<std::string> order;
    for (int i = 0; i < kProfileWarmup; ++i) subject.model->run();
    for (int round = 0; round < job_.rounds; ++round) {
      subject.samples_ms.push_back(timed_ms(*subject.model));
      for (const Event& event : subject.model->events()) {
        std::vector<double>& runs = taken[event.name];
        if (runs.empty()) order.push_back(event.name);
        runs.resize(round + 1);
        runs[round] += event.ms;
        calls[event.name] += round == 0;
      }
    }
    for (const std::string& name : order) {
      taken[name].resize(job_.rounds);
      subject.operators.push_back(Object()
                                      .add("event", json::text(name))
                                      .add("ms", json::number(median(taken[name])))
                                      .add("calls", json::number(calls[name]))
                                      .str());
    }
    subject.profiled = true;
  }

  // Row by row at batch 1; outputs of all rows behind each other.
  void run_rows() {
    subjects_.push_back(load(job_.models[0]));
    Subject& subject = subjects_[0];
    std::vector<Writing> files;
    for (size_t row = 0; row < subject.rows; ++row) {
      subject.inputs.give(row, *subject.model);
      subject.model->run();
      const std::vector<Tensor> outputs = subject.model->outputs();
      for (size_t i = 0; i < outputs.size(); ++i) {
        if (files.size() == i) files.emplace_back(job_.outputs + "/0." + std::to_string(i));
        files[i].add(subject.model->output(i), outputs[i].bytes);
      }
    }
    for (Writing& file : files) file.close();
  }

  static void check_one_row(const Subject& subject) {
    if (subject.rows != 1)
      fail(subject.job->file, "got inputs for " + std::to_string(subject.rows) + " runs, wanted 1");
  }

  static std::string written(const Subject& subject) {
    const auto output = [](const Tensor& each) {
      return Object()
          .add("type", json::text(each.type))
          .add("sizes", json::list(each.sizes, [](int size) { return std::to_string(size); }))
          .str();
    };
    const auto as_it_is = [](const std::string& each) { return each; };
    return Object()
        .add("name", json::text(subject.job->name))
        .add("load_ms", json::number(subject.load_ms))
        .add("first_run_ms", json::number(subject.first_run_ms))
        .add("warmup_runs", json::number(subject.warmup_runs))
        .add("samples_ms", json::numbers(subject.samples_ms))
        .add("memory_bytes", json::number(subject.memory_bytes))
        .add("rows", json::number(static_cast<double>(subject.rows)))
        .add("outputs", json::list(subject.model->outputs(), output))
        .add("operators", subject.profiled ? json::list(subject.operators, as_it_is) : "null")
        .str();
  }

  std::string written() const {
    const auto moment = [](const Moment& each) {
      return Object()
          .add("at_s", json::number(each.at_s))
          .add("frequency_khz", json::number(each.frequency_khz))
          .add("temperature_mc", json::number(each.temperature_mc))
          .str();
    };
    const std::string governs = governor(cpu_), version = runtime_->version();
    return Object()
               .add("format", json::text("edgeprune.answer"))
               .add("version", "1")
               .add("kind", json::text(job_.kind))
               .add("runtime", json::text(job_.runtime))
               .add("runtime_version", version.empty() ? "null" : json::text(version))
               .add("threads", json::number(job_.threads))
               .add("affinity", json::list(affinity(), [](int cpu) { return std::to_string(cpu); }))
               .add("governor", governs.empty() ? "null" : json::text(governs))
               .add("cooled_s", json::number(cooled_s_))
               .add("moments", json::list(moments_, moment))
               .add("models", "[" + models() + "]")
               .str() +
           "\n";
  }

  std::string models() const {
    std::string text;
    for (const Subject& each : subjects_) text += (text.empty() ? "" : ", ") + written(each);
    return text;
  }

  const Job& job_;
  const int cpu_;
  const std::unique_ptr<Runtime> runtime_;
  double cooled_s_ = 0;
  std::vector<Moment> moments_;
  std::vector<Subject> subjects_;
};

}  // namespace

std::string answer(const Job& job) { return Session(job).answer(); }

}  // namespace edgeprune
