#include "inputs.h"

#include <string.h>

#include "fail.h"
#include "files.h"

namespace edgeprune {
namespace {

std::vector<uint8_t> narrowed(const std::vector<uint8_t>& wide, const std::string& file) {
  std::vector<uint8_t> narrow(wide.size() / 2);
  for (size_t i = 0; i < wide.size() / 8; ++i) {
    int64_t value;
    memcpy(&value, &wide[8 * i], 8);
    const int32_t kept = static_cast<int32_t>(value);
    if (kept != value) fail(file, std::to_string(value) + " does not fit the model's int32");
    memcpy(&narrow[4 * i], &kept, 4);
  }
  return narrow;
}

std::vector<uint8_t> read_input(const InputFile& input, const Tensor& wanted) {
  std::vector<uint8_t> bytes = read_file(input.file);
  if (input.type == wanted.type) return bytes;
  if (input.type == "int64" && wanted.type == "int32") return narrowed(bytes, input.file);
  fail(input.file, "got " + input.type + ", the model takes " + wanted.type);
}

}  // namespace

Inputs::Inputs(const ModelJob& job, const std::vector<Tensor>& wanted) {
  if (job.inputs.size() != wanted.size())
    fail(job.file, "takes " + std::to_string(wanted.size()) + " inputs, got " +
                       std::to_string(job.inputs.size()));
  for (size_t i = 0; i < wanted.size(); ++i) {
    bytes_.push_back(read_input(job.inputs[i], wanted[i]));
    const size_t got = bytes_[i].size(), one = wanted[i].bytes;
    const size_t rows = one ? got / one : 0;
    if (!rows || rows * one != got || (i && rows != rows_))
      fail(job.inputs[i].file, "got " + std::to_string(got) + " bytes, wanted " +
                                   std::to_string(i ? rows_ * one : one) +
                                   (i ? "" : " or a multiple of it"));
    rows_ = rows;
  }
  if (wanted.empty()) rows_ = 1;
}

void Inputs::give(size_t row, Model& model) const {
  for (size_t i = 0; i < bytes_.size(); ++i)
    model.give(i, bytes_[i].data() + row * (bytes_[i].size() / rows_));
}

}  // namespace edgeprune
