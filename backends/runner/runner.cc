// Runs an ExecuTorch file without Python or PyTorch, on a board or under an emulator:
//   runner [--library FILE]... MODEL FOLDER INPUT...
// Inputs are raw bytes, one file for each tensor that the model takes, in their order. Its outputs
// are written to FOLDER/0, FOLDER/1, ... as raw bytes, and their types and sizes printed.
//
// Only ExecuTorch's core interface is used, which has no types of the C++ library in it: the
// runner may come with another C++ library than ExecuTorch.
#include <dlfcn.h>
#include <errno.h>
#include <executorch/extension/data_loader/buffer_data_loader.h>
#include <executorch/extension/memory_allocator/malloc_memory_allocator.h>
#include <executorch/runtime/core/exec_aten/util/dim_order_util.h>
#include <executorch/runtime/core/exec_aten/util/scalar_type_util.h>
#include <executorch/runtime/executor/method.h>
#include <executorch/runtime/executor/program.h>
#include <executorch/runtime/platform/runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <memory>
#include <string>
#include <vector>

namespace {

namespace runtime = executorch::runtime;
using executorch::aten::Tensor;
using executorch::aten::TensorImpl;
using executorch::extension::BufferDataLoader;
using executorch::extension::MallocMemoryAllocator;

[[noreturn]] void fail(const std::string& what, const std::string& why) {
  fprintf(stderr, "runner: %s: %s\n", what.c_str(), why.c_str());
  exit(1);
}

std::string code(runtime::Error error) {
  return std::string(runtime::to_string(error)) + " (" + std::to_string(static_cast<int>(error)) +
         ")";
}

void check(runtime::Error error, const std::string& what) {
  if (error != runtime::Error::Ok) fail(what, code(error));
}

template <class T>
T value(runtime::Result<T> result, const std::string& what) {
  if (!result.ok()) fail(what, code(result.error()));
  return std::move(*result);
}

std::vector<uint8_t> read(const std::string& path) {
  FILE* file = fopen(path.c_str(), "rb");
  if (!file) fail(path, strerror(errno));
  std::vector<uint8_t> bytes;
  uint8_t part[65536];
  for (size_t count; (count = fread(part, 1, sizeof part, file)) > 0;)
    bytes.insert(bytes.end(), part, part + count);
  fclose(file);
  return bytes;
}

void write(const std::string& path, const void* bytes, size_t count) {
  FILE* file = fopen(path.c_str(), "wb");
  if (!file || fwrite(bytes, 1, count, file) != count || fclose(file)) fail(path, strerror(errno));
}

// What a method writes while it runs, as large as its plan says.
struct Memory {
  std::vector<std::vector<uint8_t>> buffers;
  std::vector<runtime::Span<uint8_t>> spans;

  explicit Memory(const runtime::MethodMeta& meta) {
    for (size_t i = 0; i < meta.num_memory_planned_buffers(); ++i)
      buffers.emplace_back(value(meta.memory_planned_buffer_size(i), "memory plan"));
    for (auto& buffer : buffers) spans.emplace_back(buffer.data(), buffer.size());
  }
};

// The method copies small inputs, and reads the others where they are.
struct Input {
  std::vector<uint8_t> bytes;
  std::vector<TensorImpl::SizesType> sizes;
  std::vector<TensorImpl::DimOrderType> order;
  std::vector<TensorImpl::StridesType> strides;
  std::unique_ptr<TensorImpl> tensor;

  Input(const runtime::TensorInfo& info, const std::string& path)
      : bytes(read(path)),
        sizes(info.sizes().begin(), info.sizes().end()),
        order(info.dim_order().begin(), info.dim_order().end()),
        strides(sizes.size()) {
    if (bytes.size() != info.nbytes())
      fail(path, "got " + std::to_string(bytes.size()) + " bytes, wanted " +
                     std::to_string(info.nbytes()));
    check(runtime::dim_order_to_stride(sizes.data(), order.data(), sizes.size(), strides.data()),
          path);
    tensor.reset(new TensorImpl(info.scalar_type(), sizes.size(), sizes.data(), bytes.data(),
                                order.data(), strides.data()));
  }
};

void write_outputs(const runtime::Method& method, const std::string& folder) {
  for (size_t i = 0; i < method.outputs_size(); ++i) {
    const std::string place = folder + "/" + std::to_string(i);
    if (!method.get_output(i).isTensor()) fail(place, "this output is no tensor");
    const Tensor& tensor = method.get_output(i).toTensor();
    write(place, tensor.const_data_ptr(), tensor.nbytes());
    printf("%zu %s [", i, runtime::toString(tensor.scalar_type()));
    for (ssize_t d = 0; d < tensor.dim(); ++d)
      printf(d ? ", %d" : "%d", static_cast<int>(tensor.size(d)));
    printf("]\n");
  }
}

void run(const std::string& model, const std::string& folder,
         const std::vector<std::string>& paths) {
  const std::vector<uint8_t> file = read(model);
  BufferDataLoader loader(file.data(), file.size());
  const runtime::Program program = value(runtime::Program::load(&loader), model);
  const runtime::MethodMeta meta = value(program.method_meta("forward"), model);
  Memory memory(meta);
  runtime::HierarchicalAllocator planned({memory.spans.data(), memory.spans.size()});
  MallocMemoryAllocator loaded, temporary;
  runtime::MemoryManager manager(&loaded, &planned, &temporary);
  runtime::Method method = value(program.load_method("forward", &manager), model);
  if (paths.size() != meta.num_inputs())
    fail(model, "takes " + std::to_string(meta.num_inputs()) + " inputs, got " +
                    std::to_string(paths.size()));
  std::vector<std::unique_ptr<Input>> inputs;
  for (size_t i = 0; i < paths.size(); ++i) {
    inputs.emplace_back(new Input(value(meta.input_tensor_meta(i), paths[i]), paths[i]));
    check(method.set_input(Tensor(inputs[i]->tensor.get()), i), paths[i]);
  }
  check(method.execute(), model);
  write_outputs(method, folder);
}

}  // namespace

int main(int count, char** words) {
  runtime::runtime_init();
  int next = 1;
  // Kernels and delegates register themselves in ExecuTorch when they are loaded.
  for (; next + 1 < count && !strcmp(words[next], "--library"); next += 2)
    if (!dlopen(words[next + 1], RTLD_NOW | RTLD_GLOBAL)) fail(words[next + 1], dlerror());
  if (count < next + 2) {
    fprintf(stderr, "usage: runner [--library FILE]... MODEL FOLDER INPUT...\n");
    return 2;
  }
  run(words[next], words[next + 1], std::vector<std::string>(words + next + 2, words + count));
}
