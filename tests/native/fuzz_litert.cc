// Whatever a runtime hands to the LiteRT delegate is refused, or runs inside the tensors that it
// names. A driver of the interface for hostile models only: real files run in tests/litert.
#include <stdarg.h>

#include <string>
#include <utility>

#include "bytes.h"
#include "litert/tflite_abi.h"

extern "C" {
TfLiteDelegate* tflite_plugin_create_delegate(const char* const* keys, const char* const* values,
                                              size_t count, void (*report_error)(const char*));
void tflite_plugin_destroy_delegate(TfLiteDelegate*);
int32_t ep_litert_claimed(TfLiteDelegate*);
void* ep_litert_time(TfLiteDelegate*, int32_t op);
}

namespace {

constexpr Wide kMemory = 1 << 20;  // of a tensor; larger ones never get any

using Dims = std::vector<int32_t>;

TfLiteIntArray* array_of(const Dims& from) {
  void* memory = malloc(sizeof(TfLiteIntArray) + from.size() * sizeof(int));
  TfLiteIntArray* array = static_cast<TfLiteIntArray*>(memory);
  array->size = static_cast<int>(from.size());
  for (size_t i = 0; i < from.size(); ++i) array->data[i] = from[i];
  return array;
}

// -1 where a runtime would say that it overflows.
Wide bytes_of(const TfLiteIntArray& dims, int type) {
  Wide bytes = type == kTfLiteInt8 ? 1 : sizeof(float);
  for (int i = 0; i < dims.size; ++i)
    if (dims.data[i] < 0 || (bytes *= dims.data[i]) > INT64_MAX) return -1;
  return bytes;
}

// A map of 8-byte numbers.
std::vector<uint8_t> flexbuffer(const std::vector<std::pair<std::string, double>>& entries) {
  std::vector<uint8_t> all;
  const auto word = [&all](const void* from) {
    const uint8_t* first = static_cast<const uint8_t*>(from);
    all.insert(all.end(), first, first + 8);
  };
  std::vector<size_t> names;
  for (const auto& entry : entries) {
    names.push_back(all.size());
    all.insert(all.end(), entry.first.c_str(), entry.first.c_str() + entry.first.size() + 1);
  }
  const uint64_t count = entries.size(), keys = all.size(), key_width = 1;
  for (size_t name : names) all.push_back(static_cast<uint8_t>(all.size() - name));
  const uint64_t to_keys = all.size() - keys;
  word(&to_keys), word(&key_width), word(&count);
  const size_t values = all.size();
  for (const auto& entry : entries) word(&entry.second);
  constexpr uint8_t kFloat = 3 << 2 | 3, kMap = 9 << 2 | 3;
  for (size_t i = 0; i < count; ++i) all.push_back(kFloat);
  all.push_back(static_cast<uint8_t>(all.size() - values));
  all.push_back(kMap), all.push_back(1);
  return all;
}

// A node of the model, or of the delegate once it has claimed one.
struct Node {
  TfLiteNode node{};
  TfLiteRegistration registration{};
  TfLiteStablehloCompositeParams composite{};
  TfLiteFullyConnectedParams linear{};
  std::unique_ptr<Guarded<uint8_t>> attributes;
  bool is_ours = false;
  bool is_ready = false;  // else no runtime invokes it

  Node() = default;
  Node(const Node&) = delete;
  ~Node() {
    for (TfLiteIntArray* array : {node.inputs, node.outputs, node.temporaries}) free(array);
  }
};

// What a runtime has of a model: tensors, nodes, and the functions that delegates call.
class Graph {
 public:
  explicit Graph(Bytes& bytes) : bytes_(bytes) {
    context_.impl_ = this;
    context_.GetExecutionPlan = [](TfLiteContext* context, TfLiteIntArray** plan) {
      return of(context).execution_plan(plan);
    };
    context_.ResizeTensor = [](TfLiteContext* context, TfLiteTensor* tensor, TfLiteIntArray* dims) {
      return of(context).resize(*tensor, dims);
    };
    context_.ReportError = report;
    context_.AddTensors = [](TfLiteContext* context, int count, int* first) {
      return of(context).add_tensors(count, first);
    };
    context_.GetNodeAndRegistration = [](TfLiteContext* context, int number, TfLiteNode** node,
                                         TfLiteRegistration** registration) {
      return of(context).find(number, node, registration);
    };
    context_.ReplaceNodeSubsetsWithDelegateKernels =
        [](TfLiteContext* context, TfLiteRegistration registration, const TfLiteIntArray* nodes,
           TfLiteDelegate* delegate) {
          return of(context).replace(registration, *nodes, delegate);
        };
    static constexpr int kThreads[] = {1, 2, -1, 0, 4, 100, INT32_MAX};
    context_.recommended_num_threads = kThreads[bytes.byte() % 7];
  }
  Graph(const Graph&) = delete;
  ~Graph() {
    for (auto& node : nodes_)
      if (node->is_ours) node->registration.free(&context_, node->node.user_data);
    for (const TfLiteTensor& tensor : tensors_) free(tensor.dims);
    free(plan_);
  }

  TfLiteContext* context() { return &context_; }
  size_t tensors() const { return tensors_.size(); }

  int add(int type, const Dims& dims, int allocation) {
    int number;
    grow(1, &number);
    TfLiteTensor& tensor = tensors_[number];
    tensor.type = type, tensor.allocation_type = allocation;
    set_dims(tensor, array_of(dims));
    if (allocation == kTfLiteMmapRo) give_memory(number);
    return number;
  }

  Node& add(const char* name, const std::vector<uint8_t>& attributes, const Dims& inputs,
            const Dims& outputs) {
    nodes_.emplace_back(new Node);
    Node& made = *nodes_.back();
    made.attributes.reset(new Guarded<uint8_t>(attributes.size()));
    std::copy(attributes.begin(), attributes.end(), made.attributes->data());
    made.node.inputs = array_of(inputs), made.node.outputs = array_of(outputs);
    if (bytes_.one_in(2)) {
      made.registration.builtin_code = kTfLiteBuiltinCustom;
      made.registration.custom_name = name;
      made.node.custom_initial_data = made.attributes->data();
      made.node.custom_initial_data_size = static_cast<int>(attributes.size());
    } else {
      made.registration.builtin_code = kTfLiteBuiltinStablehloComposite;
      made.composite = {name, 0, made.attributes->data(), attributes.size()};
      made.node.builtin_data = &made.composite;
    }
    return made;
  }

  Node& add(const TfLiteFullyConnectedParams& linear, const Dims& inputs, const Dims& outputs) {
    nodes_.emplace_back(new Node);
    Node& made = *nodes_.back();
    made.node.inputs = array_of(inputs), made.node.outputs = array_of(outputs);
    made.linear = linear;
    made.registration.builtin_code = kTfLiteBuiltinFullyConnected;
    made.node.builtin_data = &made.linear;
    return made;
  }

  // Gives a tensor scales along a dimension; they end where nobody may read on.
  void quantise(int number, int scales, int dimension) {
    scales_.emplace_back(new Guarded<char>(sizeof(int) + scales * sizeof(float)));
    auto* held = reinterpret_cast<TfLiteFloatArray*>(scales_.back()->data());
    held->size = scales;
    for (int i = 0; i < scales; ++i) held->data[i] = 0.5f;
    quantised_.emplace_back(new TfLiteAffineQuantization{held, nullptr, dimension});
    tensors_[number].quantization.type = kTfLiteAffineQuantization;
    tensors_[number].quantization.params = quantised_.back().get();
  }

  // What no model should have.
  void spoil(Bytes& bytes) {
    const size_t number = bytes.byte() % tensors_.size();
    TfLiteTensor& tensor = tensors_[number];
    TfLiteIntArray& indices = *(bytes.one_in(2) ? nodes_[0]->node.inputs : nodes_[0]->node.outputs);
    switch (bytes.byte() % 8) {
      case 0:
        tensor.type = bytes.byte() % 12;
        break;
      case 1:
        free(tensor.dims), tensor.dims = nullptr;
        break;
      case 2: {
        Dims dims(bytes.byte() % 9);
        for (int32_t& dim : dims) dim = bytes.one_in(2) ? bytes.few() : bytes.size();
        return set_dims(tensor, array_of(dims));
      }
      case 3:
        if (tensor.dims && tensor.dims->size)
          tensor.dims->data[bytes.byte() % tensor.dims->size] =
              bytes.one_in(2) ? bytes.few() : bytes.size();
        return set_dims(tensor, tensor.dims);
      case 4:
        tensor.allocation_type = bytes.byte() % 6, tensor.data = nullptr;
        if (tensor.allocation_type == kTfLiteMmapRo) give_memory(number);
        return;
      case 5:  // sparse: fewer numbers than its dimensions say
        tensor.allocation_type = kTfLiteMmapRo;
        tensor.bytes = bytes.byte() % (tensor.bytes + 1) / 4 * 4;
        return give_memory(number);
      case 6:
        indices.data[bytes.byte() % indices.size] = bytes.one_in(2) ? -1 : bytes.size();
        break;
      default:
        indices.data[bytes.byte() % indices.size] = bytes.byte() % tensors_.size();
    }
  }

  // What may happen between the delegate's calls.
  void disturb() {
    const size_t number = bytes_.byte() % tensors_.size();
    TfLiteTensor& tensor = tensors_[number];
    Node& node = *nodes_[bytes_.byte() % nodes_.size()];
    switch (bytes_.byte() % 6) {
      case 0:
        return prepare(node);
      case 1:
        return invoke(node);
      case 2:
        return allocate();
      case 3:
        if (tensor.allocation_type != kTfLiteMmapRo && tensor.dims && tensor.dims->size) {
          tensor.dims->data[bytes_.byte() % tensor.dims->size] = bytes_.few();
          set_dims(tensor, tensor.dims);
          if (bytes_.one_in(2)) give_memory(number);
        }
        return;
      case 4:
        if (tensor.allocation_type == kTfLiteArenaRw) tensor.allocation_type = kTfLiteDynamic;
        return;
      default:
        if (tensor.allocation_type != kTfLiteMmapRo) tensor.data = nullptr;
    }
  }

  // As a runtime does, disturbed where bytes are left.
  void live() {
    const auto each = [&](void (Graph::*step)(Node&)) {
      for (int count = bytes_.byte() % 4; count > 0; --count) disturb();
      for (size_t i = 0; i < nodes_.size(); ++i) (this->*step)(*nodes_[i]);
    };
    for (int rounds = 1 + bytes_.byte() % 3; rounds > 0; --rounds) {
      each(&Graph::prepare);
      allocate();
      each(&Graph::invoke);
    }
  }

 private:
  static Graph& of(TfLiteContext* context) { return *static_cast<Graph*>(context->impl_); }

  static void report(TfLiteContext*, const char* format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
  }

  bool fails() { return bytes_.left() && bytes_.byte() == 1; }

  void grow(int count, int* first) {
    *first = static_cast<int>(tensors_.size());
    // A new place each time, as in a runtime that moves them.
    std::vector<TfLiteTensor> moved(tensors_);
    moved.resize(tensors_.size() + count);
    memory_.resize(moved.size());
    tensors_.swap(moved);
    context_.tensors = tensors_.data(), context_.tensors_size = tensors_.size();
  }

  void set_dims(TfLiteTensor& tensor, TfLiteIntArray* dims) {
    if (tensor.dims != dims) free(tensor.dims);
    tensor.dims = dims;
    const Wide bytes = dims ? bytes_of(*dims, tensor.type) : 0;
    tensor.bytes = bytes < 0 ? 0 : static_cast<size_t>(bytes);
    tensor.data = nullptr;
  }

  void give_memory(size_t number) {
    TfLiteTensor& tensor = tensors_[number];
    tensor.data = nullptr;
    if (Wide(tensor.bytes) > kMemory) return;
    memory_[number] = numbers<char>(tensor.bytes, bytes_);
    tensor.data = memory_[number]->data();
    if (tensor.allocation_type == kTfLiteMmapRo) memory_[number]->forbid_writing();
  }

  // Of the memory plan.
  void allocate() {
    for (size_t i = 0; i < tensors_.size(); ++i)
      if (tensors_[i].allocation_type == kTfLiteArenaRw) give_memory(i);
  }

  void prepare(Node& node) {
    node.is_ready = node.is_ours && !node.registration.prepare(&context_, &node.node);
  }
  void invoke(Node& node) {
    if (node.is_ready) node.registration.invoke(&context_, &node.node);
  }

  TfLiteStatus execution_plan(TfLiteIntArray** plan) {
    free(plan_);
    Dims all;
    for (size_t i = 0; i < nodes_.size(); ++i) all.push_back(static_cast<int32_t>(i));
    *plan = plan_ = array_of(all);
    return fails();
  }

  TfLiteStatus resize(TfLiteTensor& tensor, TfLiteIntArray* dims) {
    const size_t number = &tensor - tensors_.data();
    REQUIRE(number < tensors_.size());
    const bool same = tensor.dims && tensor.dims->size == dims->size &&
                      !memcmp(tensor.dims->data, dims->data, dims->size * sizeof(int));
    if (tensor.data && same) return free(dims), kTfLiteOk;
    const Wide bytes = bytes_of(*dims, tensor.type);
    if (bytes < 0 || tensor.allocation_type == kTfLiteMmapRo || fails())
      return free(dims), kTfLiteError;
    set_dims(tensor, dims);
    if (tensor.allocation_type == kTfLiteDynamic) give_memory(number);
    return kTfLiteOk;
  }

  TfLiteStatus add_tensors(int count, int* first) {
    if (fails()) return kTfLiteError;
    grow(count, first);
    return kTfLiteOk;
  }

  TfLiteStatus find(int number, TfLiteNode** node, TfLiteRegistration** registration) {
    if (number < 0 || static_cast<size_t>(number) >= nodes_.size() || fails()) return kTfLiteError;
    *node = &nodes_[number]->node, *registration = &nodes_[number]->registration;
    return kTfLiteOk;
  }

  TfLiteStatus replace(const TfLiteRegistration& registration, const TfLiteIntArray& replaced,
                       TfLiteDelegate* delegate) {
    free(plan_), plan_ = nullptr;
    TfLiteIntArray* nodes = array_of(Dims(replaced.data, replaced.data + replaced.size));
    TfLiteDelegateParams params{delegate, nodes, nullptr, nullptr};
    nodes_.emplace_back(new Node);
    Node& made = *nodes_.back();
    made.is_ours = true, made.registration = registration;
    made.node.user_data =
        registration.init(&context_, reinterpret_cast<const char*>(&params), sizeof params);
    free(nodes);
    return kTfLiteOk;
  }

  Bytes& bytes_;
  TfLiteContext context_{};
  TfLiteIntArray* plan_ = nullptr;
  std::vector<TfLiteTensor> tensors_;
  std::vector<std::unique_ptr<Guarded<char>>> memory_, scales_;
  std::vector<std::unique_ptr<TfLiteAffineQuantization>> quantised_;
  std::vector<std::unique_ptr<Node>> nodes_;
};

// Nodes that are in order.
class Writer {
 public:
  Writer(Graph& graph, Bytes& bytes) : graph_(graph), bytes_(bytes) {}

  void write() {
    const int kind = bytes_.byte() % 4;
    kind == 0 ? layer_norm() : kind == 1 ? linear() : kind == 2 ? attention() : select();
  }

 private:
  int32_t tokens() { return bytes_.one_in(4) ? 1 + bytes_.byte() % 70 : bytes_.few(); }
  int tensor(const Dims& dims) { return graph_.add(kTfLiteFloat32, dims, kTfLiteArenaRw); }
  int constant(int type, const Dims& dims) { return graph_.add(type, dims, kTfLiteMmapRo); }
  Dims rows() {
    Dims dims(1 + bytes_.byte() % 6, 1);
    for (int32_t& dim : dims) dim = bytes_.few() % 4 + 1;
    dims.back() = tokens();
    return dims;
  }
  // Perhaps damaged.
  void node(const char* name, std::vector<uint8_t> attributes, const Dims& inputs,
            const Dims& outputs) {
    for (int count = bytes_.one_in(2) ? 0 : bytes_.byte() % 3; count > 0; --count)
      attributes[bytes_.byte() % attributes.size()] = bytes_.byte();
    if (bytes_.byte() == 1) attributes.resize(attributes.size() - bytes_.byte() % 16);
    graph_.add(name, attributes, inputs, outputs);
  }

  void attention() {
    const bool scored = bytes_.one_in(2);
    const int32_t batch = bytes_.few() % 3 + 1, queries = tokens();
    const int32_t keys = scored ? queries : tokens();
    const int32_t kv_heads = bytes_.few(), heads = kv_heads * (1 + bytes_.byte() % 2);
    const int32_t dim = tokens();
    const auto some = [&](int32_t whole) { return bytes_.one_in(2) ? 1 : whole; };
    Dims inputs = {tensor({batch, queries, heads * dim}), tensor({batch, keys, kv_heads * dim}),
                   tensor({batch, keys, kv_heads * dim})};
    Dims outputs = {tensor({batch, queries, heads * dim})};
    if (scored) outputs.push_back(tensor({batch, keys}));
    if (bytes_.one_in(2)) {
      inputs.push_back(tensor({some(batch), some(heads), some(queries), keys}));
      if (scored) inputs.push_back(tensor({batch, keys}));
    }
    node(scored ? "edgeprune.slim_attention_scores" : "edgeprune.slim_attention",
         flexbuffer({{"heads", heads},
                     {"kv_heads", kv_heads},
                     {"scale", 0.5},
                     {"causal", bytes_.byte() % 2}}),
         inputs, outputs);
  }

  void select() {
    Dims dims = rows();
    const size_t axis = bytes_.byte() % dims.size();
    const int32_t size = dims[axis], keep = 1 + bytes_.byte() % size;
    Dims inputs = {tensor(dims), tensor({1, size})};
    if (bytes_.one_in(2)) inputs.push_back(constant(kTfLiteFloat32, {1, size}));
    dims[axis] = keep;
    node("edgeprune.token_select",
         flexbuffer({{"keep", keep}, {"axis", static_cast<double>(axis)}}), inputs, {tensor(dims)});
  }

  void layer_norm() {
    const Dims dims = rows(), width = {dims.back()};
    Dims inputs = {tensor(dims), constant(kTfLiteFloat32, width), tensor(width)};
    Dims outputs = {tensor(dims)};
    if (bytes_.one_in(2)) {
      inputs.push_back(tensor(dims));
      if (bytes_.one_in(2)) outputs.push_back(tensor(dims));
    }
    node("edgeprune.layer_norm", flexbuffer({{"eps", 1e-5}}), inputs, outputs);
  }

  void linear() {
    Dims dims = rows();
    const int32_t out = tokens();
    const int weights = constant(kTfLiteInt8, {out, dims.back()});
    if (!bytes_.one_in(8))
      graph_.quantise(weights, bytes_.one_in(8) ? bytes_.few() : out, bytes_.one_in(8));
    Dims inputs = {tensor(dims), weights};
    if (bytes_.one_in(2)) inputs.push_back(bytes_.one_in(2) ? -1 : constant(kTfLiteFloat32, {out}));
    const bool keeps = bytes_.one_in(2);
    int32_t rows = 1;
    for (size_t i = 0; i + 1 < dims.size(); ++i) rows *= dims[i];
    dims.back() = out;
    graph_.add({bytes_.byte() % 3, bytes_.byte() % 16 == 0, keeps, false, 0}, inputs,
               {tensor(keeps ? dims : Dims{rows, out})});
  }

  Graph& graph_;
  Bytes& bytes_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // What is done to a model comes first: what it is may use up all bytes.
  const size_t first = size < 32 ? size : 32;
  Bytes changes(data, first), source(data + first, size - first);
  Graph graph(source);
  Writer writer(graph, source);
  for (int count = 1 + changes.byte() % 3; count > 0; --count) writer.write();
  for (int count = changes.byte() % 4; count > 0 && changes.left(); --count) graph.spoil(changes);
  const char *key = changes.byte() == 1 ? "" : "verbose", *value = changes.byte() == 1 ? "" : "0";
  TfLiteDelegate* delegate = tflite_plugin_create_delegate(&key, &value, 1, [](const char*) {});
  REQUIRE((delegate != nullptr) == (*key && *value));
  if (!delegate) return 0;
  REQUIRE(ep_litert_time(delegate, 0));  // from here on it times what it runs
  if (!delegate->Prepare(graph.context(), delegate)) graph.live();
  REQUIRE(ep_litert_claimed(delegate) <= 3);
  tflite_plugin_destroy_delegate(delegate);
  return 0;
}
