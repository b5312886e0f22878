// An external delegate for LiteRT and TFLite that runs slim attention, layer norm and token
// selection.
//
// It claims composites of our names, and custom ops of the same names; every node becomes a
// delegate node of its own, so that no tensor between two of them is lost to the memory plan.
// What it cannot run stays with the runtime, which has the composite's decomposition. Sizes are
// read anew from the tensors whenever they may have changed: there is no state but attributes.
#include "op.h"
#include "share.h"
#include "system.h"

namespace {

const Op* const kNamed[] = {&kSlimAttention, &kSlimAttentionScores, &kLayerNorm, &kTokenSelect};
constexpr int kOps = sizeof(kNamed) / sizeof(*kNamed) + 1;  // kFullyConnected is the last

// What an operator took, in all nodes.
struct Time {
  const char* name;
  int64_t nanoseconds, calls;
};

struct Plugin {
  TfLiteDelegate delegate;  // first: the runtime holds a pointer to it
  bool verbose, timed;
  int32_t claimed;
  Time times[kOps];
  Pool pool;
};

// A node of ours: tensors are indices, because the context moves them.
struct Node {
  const Op* op;
  Plugin* plugin;
  Attributes attributes;
  int inputs[Tensors::kMostInputs], outputs[Tensors::kMostOutputs], input_count, output_count;
  int workspace;
  int threads;  // that there is workspace for
  void* packed;
};

const char* read_attributes(const Op& op, const void* bytes, size_t size, Attributes* attributes) {
  FlexMap map;
  if (!flex_map(bytes, size, &map)) return "attributes that are no FlexBuffer map";
  bool found[Attributes::kMost] = {};
  for (size_t i = 0; i < map.count; ++i) {
    const char* key = flex_key(map, i);
    if (!key) return "attributes with a malformed name";
    int place = 0;
    while (place < Attributes::kMost && op.attributes[place] && strcmp(op.attributes[place], key))
      ++place;
    if (place == Attributes::kMost || !op.attributes[place]) return "an unknown attribute";
    if (!flex_number(map, i, &attributes->numbers[place])) return "an attribute that is no number";
    found[place] = true;
  }
  for (int i = 0; i < Attributes::kMost && op.attributes[i]; ++i)
    if (!found[i]) return "a missing attribute";
  return nullptr;
}

const Op* op_named(const char* name) {
  for (const Op* op : kNamed)
    if (name && !strcmp(op->name, name)) return op;
  return nullptr;
}

// False when an index is no tensor's.
bool look_up(const TfLiteContext& context, const int* from, int count, const TfLiteTensor** to) {
  for (int i = 0; i < count; ++i) {
    if (from[i] < 0 || static_cast<size_t>(from[i]) >= context.tensors_size) return false;
    to[i] = &context.tensors[from[i]];
  }
  return true;
}

const char* tensors_of(const TfLiteContext& context, const Node& node, Tensors* tensors) {
  tensors->input_count = node.input_count;
  tensors->output_count = node.output_count;
  tensors->packed = node.packed;
  if (!look_up(context, node.inputs, node.input_count, tensors->inputs) ||
      !look_up(context, node.outputs, node.output_count, tensors->outputs))
    return "a tensor that is left out";
  for (int i = 0; i < node.output_count; ++i) {
    if (tensors->outputs[i]->type != kTfLiteFloat32) return "an output that is not float32";
    if (tensors->outputs[i]->allocation_type == kTfLiteMmapRo)
      return "an output that is a constant";
  }
  return nullptr;
}

const char* call_of(const TfLiteContext& context, const Node& node, Call* call) {
  Tensors tensors;
  *call = Call{};
  const char* reason = tensors_of(context, node, &tensors);
  return reason ? reason : node.op->call(node.attributes, tensors, node.threads, call);
}

// How many there are, or -1 when that is more than ``most``.
int copied(const TfLiteIntArray* from, int most, int* to) {
  if (!from || from->size > most) return -1;
  for (int i = 0; i < from->size; ++i) to[i] = from->data[i];
  return from->size;
}

// Null when this is an operator of ours, else the reason why not; ``node->op`` is null when it is
// another.
const char* read_op(const TfLiteNode& from, const TfLiteRegistration& registration, Node* node) {
  const void* bytes = from.custom_initial_data;
  size_t size = from.custom_initial_data_size < 0 ? 0 : from.custom_initial_data_size;
  if (registration.builtin_code == kTfLiteBuiltinFullyConnected && from.builtin_data) {
    const auto& given = *static_cast<TfLiteFullyConnectedParams*>(from.builtin_data);
    node->op = &kFullyConnected;
    node->attributes = {{static_cast<double>(given.activation),
                         static_cast<double>(given.keep_num_dims),
                         static_cast<double>(given.weights_format)}};
    return nullptr;
  }
  if (registration.builtin_code == kTfLiteBuiltinCustom) {
    node->op = op_named(registration.custom_name);
  } else if (registration.builtin_code == kTfLiteBuiltinStablehloComposite && from.builtin_data) {
    const auto* composite = static_cast<TfLiteStablehloCompositeParams*>(from.builtin_data);
    node->op = op_named(composite->name);
    bytes = composite->attributes;
    size = composite->attributes_size;
  }
  return node->op ? read_attributes(*node->op, bytes, size, &node->attributes) : "another op";
}

// Null when we run this node, else the reason why not.
const char* read_node(const TfLiteContext& context, const TfLiteNode& from,
                      const TfLiteRegistration& registration, Node* node) {
  *node = Node{};
  const char* reason = read_op(from, registration, node);
  if (reason) return reason;
  node->threads = 1;
  node->input_count = copied(from.inputs, Tensors::kMostInputs, node->inputs);
  node->output_count = copied(from.outputs, Tensors::kMostOutputs, node->outputs);
  // A last input that is left out, such as a bias.
  if (node->input_count > 0 && node->inputs[node->input_count - 1] == -1) --node->input_count;
  if (node->input_count < 1 || node->output_count < 1) return "no tensors, or too many";
  Call call;
  return call_of(context, *node, &call);
}

TfLiteIntArray* array_of(int size, const int* from) {
  auto* array = static_cast<TfLiteIntArray*>(malloc(sizeof(TfLiteIntArray) + size * sizeof(int)));
  if (!array) return nullptr;
  array->size = size;
  for (int i = 0; i < size; ++i) array->data[i] = from[i];
  return array;
}

TfLiteStatus resize(TfLiteContext* context, int tensor, int rank, const int* dims) {
  TfLiteIntArray* array = array_of(rank, dims);
  if (!array) return kTfLiteError;
  return context->ResizeTensor(context, &context->tensors[tensor], array);
}

TfLiteStatus refuse(TfLiteContext* context, const Node& node, const char* reason) {
  context->ReportError(context, "%s: %s", node.op->name, reason);
  return kTfLiteError;
}

// Fills in the call, and makes room for what it writes.
TfLiteStatus plan(TfLiteContext* context, Node* node, Call* call) {
  node->threads = 1;
  const char* reason = call_of(*context, *node, call);
  node->threads = threads_for(*call, context->recommended_num_threads);
  if (!reason && node->threads > 1) reason = call_of(*context, *node, call);
  if (reason) return refuse(context, *node, reason);
  const size_t floats = workspace_bytes(*call, node->threads) / sizeof(float);
  const int size = static_cast<int>(floats);
  if (floats > 1u << 30) return refuse(context, *node, "a workspace over 4 GiB");
  for (int i = 0; i < node->output_count; ++i)
    if (resize(context, node->outputs[i], call->outputs[i].rank, call->outputs[i].size))
      return kTfLiteError;
  return resize(context, node->workspace, 1, &size);
}

// Constants are packed once, when sizes are first known.
TfLiteStatus pack(TfLiteContext* context, Node* node) {
  if (node->packed || !node->op->pack) return kTfLiteOk;
  Call call;
  Tensors tensors;
  const char* reason = call_of(*context, *node, &call);
  if (!reason) reason = tensors_of(*context, *node, &tensors);
  if (!reason && posix_memalign(&node->packed, kLine, node->op->packed_bytes(call)))
    reason = "no memory for its weights";
  if (reason) return refuse(context, *node, reason);
  node->op->pack(call, tensors, node->packed);
  return kTfLiteOk;
}

void* init(TfLiteContext* context, const char* buffer, size_t) {
  const auto* params = reinterpret_cast<const TfLiteDelegateParams*>(buffer);
  TfLiteNode* from;
  TfLiteRegistration* registration;
  auto* node = static_cast<Node*>(calloc(1, sizeof(Node)));
  if (!node) return nullptr;
  if (params->nodes_to_replace->size == 1 &&
      !context->GetNodeAndRegistration(context, params->nodes_to_replace->data[0], &from,
                                       &registration) &&
      !read_node(*context, *from, *registration, node) &&
      !context->AddTensors(context, 1, &node->workspace)) {
    node->plugin = reinterpret_cast<Plugin*>(params->delegate);
    return node;
  }
  free(node);
  return nullptr;
}

void release(TfLiteContext*, void* data) {
  auto* node = static_cast<Node*>(data);
  if (node) free(node->packed);
  free(node);
}

// Sizes that are known only when it runs. Outputs that once were dynamic remain so.
bool is_dynamic(const TfLiteContext& context, const Node& node) {
  for (int i = 0; i < node.input_count; ++i)
    if (context.tensors[node.inputs[i]].allocation_type == kTfLiteDynamic) return true;
  return context.tensors[node.outputs[0]].allocation_type == kTfLiteDynamic;
}

void make_dynamic(TfLiteTensor* tensor) {
  if (tensor->allocation_type == kTfLiteDynamic) return;
  tensor->allocation_type = kTfLiteDynamic;
  tensor->data = nullptr;  // it was the memory plan's
}

TfLiteStatus prepare(TfLiteContext* context, TfLiteNode* self) {
  auto* node = static_cast<Node*>(self->user_data);
  if (!node) return kTfLiteError;
  TfLiteTensor* workspace = &context->tensors[node->workspace];
  TfLiteIntArray* temporaries = array_of(1, &node->workspace);
  if (!temporaries) return kTfLiteError;
  free(self->temporaries);
  self->temporaries = temporaries;
  workspace->type = kTfLiteFloat32;
  if (pack(context, node)) return kTfLiteError;
  if (is_dynamic(*context, *node)) {
    make_dynamic(workspace);
    for (int i = 0; i < node->output_count; ++i) make_dynamic(&context->tensors[node->outputs[i]]);
    return kTfLiteOk;
  }
  workspace->allocation_type = kTfLiteArenaRw;
  Call call;
  return plan(context, node, &call);
}

bool has_all_memory(const TfLiteContext& context, const Node& node, const Call& call) {
  for (int i = 0; i < node.input_count; ++i)
    if (!has_memory(context.tensors[node.inputs[i]])) return false;
  for (int i = 0; i < node.output_count; ++i)
    if (!has_memory(context.tensors[node.outputs[i]], call.outputs[i])) return false;
  const TfLiteTensor& workspace = context.tensors[node.workspace];
  const size_t wanted = workspace_bytes(call, node.threads);
  return !wanted || (workspace.data && workspace.bytes >= wanted);
}

TfLiteStatus run(TfLiteContext* context, TfLiteNode* self) {
  auto* node = static_cast<Node*>(self->user_data);
  Call call;
  if (context->tensors[node->outputs[0]].allocation_type == kTfLiteDynamic &&
      plan(context, node, &call))
    return kTfLiteError;
  const char* reason = call_of(*context, *node, &call);
  if (!reason && !has_all_memory(*context, *node, call)) reason = "a tensor without memory";
  if (reason) return refuse(context, *node, reason);
  run_shared(*node->op, call, node->threads, context->tensors[node->workspace].data,
             &node->plugin->pool);
  return kTfLiteOk;
}

int64_t nanoseconds() {
  constexpr int kMonotonic = 1;
  long now[2];
  clock_gettime(kMonotonic, now);
  return now[0] * int64_t{1000000000} + now[1];
}

TfLiteStatus invoke(TfLiteContext* context, TfLiteNode* self) {
  const auto& node = *static_cast<Node*>(self->user_data);
  if (!node.plugin->timed) return run(context, self);
  Time* time = node.plugin->times;
  while (time->name != node.op->name) ++time;
  const int64_t start = nanoseconds();
  const TfLiteStatus status = run(context, self);
  time->nanoseconds += nanoseconds() - start;
  ++time->calls;
  return status;
}

// Indices of the nodes that we run; how many is returned, or -1.
int find_nodes(TfLiteContext* context, const Plugin& plugin, const TfLiteIntArray& plan,
               int* found) {
  int count = 0;
  for (int i = 0; i < plan.size; ++i) {
    TfLiteNode* from;
    TfLiteRegistration* registration;
    if (context->GetNodeAndRegistration(context, plan.data[i], &from, &registration)) return -1;
    Node node;
    const char* reason = read_node(*context, *from, *registration, &node);
    if (!reason)
      found[count++] = plan.data[i];
    else if (node.op && plugin.verbose)
      dprintf(2, "edgeprune: node %d, %s, stays with the runtime: %s\n", plan.data[i],
              node.op->name, reason);
  }
  return count;
}

TfLiteStatus claim(TfLiteContext* context, TfLiteDelegate* delegate, int node) {
  TfLiteNode* from;
  TfLiteRegistration *registration, ours{};
  if (context->GetNodeAndRegistration(context, node, &from, &registration)) return kTfLiteError;
  Node read;
  read_node(*context, *from, *registration, &read);
  ours.init = init;
  ours.free = release;
  ours.prepare = prepare;
  ours.invoke = invoke;
  ours.builtin_code = kTfLiteBuiltinDelegate;
  ours.custom_name = read.op->name;
  ours.version = 1;
  TfLiteIntArray* one = array_of(1, &node);
  if (!one) return kTfLiteError;
  const TfLiteStatus status =
      context->ReplaceNodeSubsetsWithDelegateKernels(context, ours, one, delegate);
  free(one);
  return status;
}

// Called once for each subgraph.
TfLiteStatus prepare_subgraph(TfLiteContext* context, TfLiteDelegate* delegate) {
  auto* plugin = reinterpret_cast<Plugin*>(delegate);
  TfLiteIntArray* plan;
  if (context->GetExecutionPlan(context, &plan)) return kTfLiteError;
  const int total = plan->size;
  auto* found = static_cast<int*>(malloc((total + 1) * sizeof(int)));
  if (!found) return kTfLiteError;
  const int count = find_nodes(context, *plugin, *plan, found);
  TfLiteStatus status = count < 0 ? kTfLiteError : kTfLiteOk;
  for (int i = 0; i < count && !status; ++i) status = claim(context, delegate, found[i]);
  free(found);
  if (status) return status;
  plugin->claimed += count;
  if (plugin->verbose && count) dprintf(2, "edgeprune: runs %d of %d nodes\n", count, total);
  return kTfLiteOk;
}

}  // namespace

// Options: "verbose" ("1" or "0"; also from the environment, EDGEPRUNE_VERBOSE): say on standard
// error what is run, and why what is ours is not.
extern "C" EP_PUBLIC TfLiteDelegate* tflite_plugin_create_delegate(
    const char* const* keys, const char* const* values, size_t count,
    void (*report_error)(const char*)) {
  const char* said = getenv("EDGEPRUNE_VERBOSE");
  for (size_t i = 0; i < count; ++i) {
    if (strcmp(keys[i], "verbose") || (strcmp(values[i], "0") && strcmp(values[i], "1"))) {
      if (report_error) report_error("edgeprune: the only option is verbose, 0 or 1");
      return nullptr;
    }
    said = values[i];
  }
  auto* plugin = static_cast<Plugin*>(calloc(1, sizeof(Plugin)));
  if (!plugin) return nullptr;
  plugin->verbose = said && *said && strcmp(said, "0");
  Time* time = plugin->times;
  for (const Op* op : kNamed) (time++)->name = op->name;
  time->name = kFullyConnected.name;
  plugin->delegate.data_ = plugin;
  plugin->delegate.Prepare = prepare_subgraph;
  // Else the runtime prepares all nodes first, and stops at custom ops that only we know.
  plugin->delegate.flags = kTfLiteDelegateFlagsAllowDynamicTensors;
  return &plugin->delegate;
}

extern "C" EP_PUBLIC void tflite_plugin_destroy_delegate(TfLiteDelegate* delegate) {
  if (!delegate) return;
  end_threads(&reinterpret_cast<Plugin*>(delegate)->pool);
  free(delegate);
}

// How many nodes this delegate runs, in all interpreters that it was given to.
extern "C" EP_PUBLIC int32_t ep_litert_claimed(TfLiteDelegate* delegate) {
  return reinterpret_cast<Plugin*>(delegate)->claimed;
}

// What an operator takes from now on; null: there are no more. Whoever asks may set the numbers to
// 0, and runs one interpreter at a time.
extern "C" EP_PUBLIC Time* ep_litert_time(TfLiteDelegate* delegate, int32_t op) {
  auto* plugin = reinterpret_cast<Plugin*>(delegate);
  plugin->timed = true;
  return op < kOps ? &plugin->times[op] : nullptr;
}
