// TFLite's C interface: an interpreter, as apps have had it for years.
#include <stdarg.h>
#include <stdio.h>

#include "litert.h"

namespace edgeprune::litert {
namespace {

struct TfModel;
struct TfOptions;
struct TfInterpreter;
struct TfRunner;
struct TfTensor;

// The functions that are called, under their names without TfLite.
struct Api {
  TfModel* (*ModelCreateFromFile)(const char*);
  TfOptions* (*InterpreterOptionsCreate)();
  void (*InterpreterOptionsDelete)(TfOptions*);
  void (*InterpreterOptionsSetNumThreads)(TfOptions*, int32_t);
  void (*InterpreterOptionsAddDelegate)(TfOptions*, void*);
  TfInterpreter* (*InterpreterCreate)(const TfModel*, const TfOptions*);
  int (*InterpreterAllocateTensors)(TfInterpreter*);
  int32_t (*InterpreterGetInputTensorCount)(const TfInterpreter*);
  int32_t (*InterpreterGetOutputTensorCount)(const TfInterpreter*);
  TfTensor* (*InterpreterGetInputTensor)(const TfInterpreter*, int32_t);
  const TfTensor* (*InterpreterGetOutputTensor)(const TfInterpreter*, int32_t);
  int (*InterpreterInvoke)(TfInterpreter*);
  TfRunner* (*InterpreterGetSignatureRunner)(const TfInterpreter*, const char*);
  int (*SignatureRunnerAllocateTensors)(TfRunner*);
  size_t (*SignatureRunnerGetInputCount)(const TfRunner*);
  size_t (*SignatureRunnerGetOutputCount)(const TfRunner*);
  const char* (*SignatureRunnerGetInputName)(const TfRunner*, int32_t);
  const char* (*SignatureRunnerGetOutputName)(const TfRunner*, int32_t);
  TfTensor* (*SignatureRunnerGetInputTensor)(TfRunner*, const char*);
  const TfTensor* (*SignatureRunnerGetOutputTensor)(const TfRunner*, const char*);
  int (*SignatureRunnerInvoke)(TfRunner*);
  int (*TensorType)(const TfTensor*);
  int32_t (*TensorNumDims)(const TfTensor*);
  int32_t (*TensorDim)(const TfTensor*, int32_t);
  size_t (*TensorByteSize)(const TfTensor*);
  void* (*TensorData)(const TfTensor*);
  int (*TensorCopyFromBuffer)(TfTensor*, const void*, size_t);
  const char* (*Version)();

  explicit Api(void* library) {
#define EP_FIND(name) \
  name = function<std::remove_pointer_t<decltype(name)>>(library, "TfLite" #name)
    EP_FIND(ModelCreateFromFile);
    EP_FIND(InterpreterOptionsCreate);
    EP_FIND(InterpreterOptionsDelete);
    EP_FIND(InterpreterOptionsSetNumThreads);
    EP_FIND(InterpreterOptionsAddDelegate);
    EP_FIND(InterpreterCreate);
    EP_FIND(InterpreterAllocateTensors);
    EP_FIND(InterpreterGetInputTensorCount);
    EP_FIND(InterpreterGetOutputTensorCount);
    EP_FIND(InterpreterGetInputTensor);
    EP_FIND(InterpreterGetOutputTensor);
    EP_FIND(InterpreterInvoke);
    EP_FIND(InterpreterGetSignatureRunner);
    EP_FIND(SignatureRunnerAllocateTensors);
    EP_FIND(SignatureRunnerGetInputCount);
    EP_FIND(SignatureRunnerGetOutputCount);
    EP_FIND(SignatureRunnerGetInputName);
    EP_FIND(SignatureRunnerGetOutputName);
    EP_FIND(SignatureRunnerGetInputTensor);
    EP_FIND(SignatureRunnerGetOutputTensor);
    EP_FIND(SignatureRunnerInvoke);
    EP_FIND(TensorType);
    EP_FIND(TensorNumDims);
    EP_FIND(TensorDim);
    EP_FIND(TensorByteSize);
    EP_FIND(TensorData);
    EP_FIND(TensorCopyFromBuffer);
    EP_FIND(Version);
#undef EP_FIND
  }
};

class InterpreterModel final : public Model {
 public:
  InterpreterModel(const Api& api, const Libraries& libraries, const ModelJob& job)
      : api_(api), plugin_(libraries.plugin.get()), file_(job.file) {
    TfModel* model = api.ModelCreateFromFile(file_.c_str());
    if (!model) fail(file_, "no model that LiteRT can read");
    TfOptions* options = api.InterpreterOptionsCreate();
    api.InterpreterOptionsSetNumThreads(options, libraries.threads);
    if (plugin_) api.InterpreterOptionsAddDelegate(options, delegate_ = plugin_->made());
    interpreter_ = api.InterpreterCreate(model, options);
    api.InterpreterOptionsDelete(options);
    if (!interpreter_) fail(file_, "LiteRT makes no interpreter for it");
    if (job.signature.empty()) {
      check(api.InterpreterAllocateTensors(interpreter_), "its tensors cannot be allocated");
      find_tensors();
    } else {
      runner_ = api.InterpreterGetSignatureRunner(interpreter_, job.signature.c_str());
      if (!runner_) fail(file_, "has no signature '" + job.signature + "'");
      check(api.SignatureRunnerAllocateTensors(runner_), "its tensors cannot be allocated");
      find_tensors_of_signature();
    }
    given_.resize(inputs_.size());
  }

  std::vector<Tensor> inputs() const override {
    std::vector<Tensor> found;
    for (const TfTensor* each : inputs_) found.push_back(described(each));
    return found;
  }
  std::vector<Tensor> outputs() const override {
    std::vector<Tensor> found;
    for (const TfTensor* each : outputs_) found.push_back(described(each));
    return found;
  }
  void give(size_t input, const void* bytes) override { given_[input] = bytes; }

  void run() override {
    if (plugin_ && traced_) plugin_->start_times(delegate_);
    for (size_t i = 0; i < inputs_.size(); ++i)
      check(api_.TensorCopyFromBuffer(inputs_[i], given_[i], api_.TensorByteSize(inputs_[i])),
            "an input cannot be copied");
    check(runner_ ? api_.SignatureRunnerInvoke(runner_) : api_.InterpreterInvoke(interpreter_),
          "it cannot be run");
  }

  const void* output(size_t number) const override { return api_.TensorData(outputs_[number]); }

  // This interface tells no more than our delegate does.
  std::vector<Event> events() override {
    std::vector<Event> found;
    if (plugin_) plugin_->add_times(delegate_, found);
    return found;
  }
  void trace() {
    traced_ = true;
    if (plugin_) plugin_->start_times(delegate_);
  }

 private:
  void check(int status, const char* problem) const {
    if (status) fail(file_, std::string(problem) + " (status " + std::to_string(status) + ")");
  }

  void find_tensors() {
    for (int32_t i = 0; i < api_.InterpreterGetInputTensorCount(interpreter_); ++i)
      inputs_.push_back(api_.InterpreterGetInputTensor(interpreter_, i));
    for (int32_t i = 0; i < api_.InterpreterGetOutputTensorCount(interpreter_); ++i)
      outputs_.push_back(api_.InterpreterGetOutputTensor(interpreter_, i));
  }

  void find_tensors_of_signature() {
    std::vector<std::string> names;
    for (size_t i = 0; i < api_.SignatureRunnerGetInputCount(runner_); ++i)
      names.push_back(api_.SignatureRunnerGetInputName(runner_, static_cast<int32_t>(i)));
    for (const size_t i : in_order(names))
      inputs_.push_back(api_.SignatureRunnerGetInputTensor(runner_, names[i].c_str()));
    names.clear();
    for (size_t i = 0; i < api_.SignatureRunnerGetOutputCount(runner_); ++i)
      names.push_back(api_.SignatureRunnerGetOutputName(runner_, static_cast<int32_t>(i)));
    for (const size_t i : in_order(names))
      outputs_.push_back(api_.SignatureRunnerGetOutputTensor(runner_, names[i].c_str()));
  }

  Tensor described(const TfTensor* tensor) const {
    Tensor found{element(api_.TensorType(tensor)).name, {}, api_.TensorByteSize(tensor)};
    for (int32_t d = 0; d < api_.TensorNumDims(tensor); ++d)
      found.sizes.push_back(api_.TensorDim(tensor, d));
    return found;
  }

  const Api& api_;
  const Plugin* plugin_;
  const std::string file_;
  void* delegate_ = nullptr;
  bool traced_ = false;
  TfInterpreter* interpreter_ = nullptr;
  TfRunner* runner_ = nullptr;
  std::vector<TfTensor*> inputs_;
  std::vector<const TfTensor*> outputs_;
  std::vector<const void*> given_;
};

class Interpreter final : public Runtime {
 public:
  explicit Interpreter(Libraries libraries)
      : libraries_(std::move(libraries)), api_(libraries_.runtime) {}
  std::string version() const override { return std::string("TFLite ") + api_.Version(); }
  std::unique_ptr<Model> load(const ModelJob& model, bool traced) override {
    std::unique_ptr<InterpreterModel> made(new InterpreterModel(api_, libraries_, model));
    if (traced) made->trace();
    return made;
  }

 private:
  const Libraries libraries_;
  const Api api_;
};

}  // namespace

std::unique_ptr<Runtime> open_interpreter(Libraries libraries) {
  return std::unique_ptr<Runtime>(new Interpreter(std::move(libraries)));
}

}  // namespace edgeprune::litert
