// A model's inputs, from files of raw numbers.
#ifndef EDGEPRUNE_RUNNER_INPUTS_H
#define EDGEPRUNE_RUNNER_INPUTS_H

#include <stdint.h>

#include <string>
#include <vector>

#include "job.h"
#include "model.h"

namespace edgeprune {

// Any number of rows: a file holds as many times what the model takes as the others.
class Inputs {
 public:
  Inputs() = default;
  // Ends the program where a file does not fit. A model may take int32 where a file has int64.
  Inputs(const ModelJob& job, const std::vector<Tensor>& wanted);
  size_t rows() const { return rows_; }
  void give(size_t row, Model& model) const;

 private:
  size_t rows_ = 0;
  std::vector<std::vector<uint8_t>> bytes_;
};

}  // namespace edgeprune

#endif
