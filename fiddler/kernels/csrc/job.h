// One layer message in the form in which the tiers compute it.
#pragma once

#include "abi.h"
#include "formats.h"

namespace fiddler {

// How a projection's codes become weights; scales is null where weights are plain.
struct Coding {
  const unsigned char* scales;
  const unsigned char* zeros;
  float multiplier;
  int64_t scales_stride;
  int64_t group_inputs;
  int64_t group_outputs;
  int64_t first_output;
  int32_t scale_kind;

  // Where the scales, and the zero points, of an output begin.
  int64_t first_group(int64_t output) const {
    output += first_output;
    return (group_outputs == 1 ? output : output / group_outputs) * scales_stride;  // a division takes as long as a row's part
  }
};

// One expert's projection, logically [out, in].
struct Matrix {
  const unsigned char* weights;
  const float* bias;
  int64_t out_stride;  // of codes in bytes
  int64_t in_stride;
  Coding coding;

  bool is_transposed() const { return in_stride != 1; }
};

// An expert's rows as tiles of [16 pairs of inputs][16 rows][2]. They are stored segment by segment of the inputs, so
// that a segment of all rows stays in the second-level cache.
struct RowTiles {
  static constexpr int64_t rows = 16;
  static constexpr int64_t inputs = 32;
  static constexpr int64_t bytes = rows * inputs * 2;

  unsigned char* data;  // null if rows are not packed
  int64_t num_blocks;   // of 16 rows; missing rows are 0
  int64_t num_steps;    // of 32 inputs; missing inputs are 0
  int64_t segment_steps;

  int64_t num_tiles() const { return num_blocks * num_steps; }

  unsigned char* at(int64_t block, int64_t step) const {
    const int64_t segment = step / segment_steps * segment_steps;
    const int64_t steps = num_steps - segment < segment_steps ? num_steps - segment : segment_steps;
    return data + (segment * num_blocks + block * steps + step - segment) * bytes;
  }
};

// One expert that has rows: assignments [first, first + count).
struct ExpertRows {
  Matrix gate;
  Matrix up;
  Matrix down;
  Matrix factor;
  int64_t first;
  int64_t count;
  RowTiles hidden_tiles;
  RowTiles inner_tiles;  // the activated values, in place of Job::inner_rows
};

struct Job {
  int64_t rows;
  int64_t hidden_size;
  int64_t intermediate_size;
  bool gated;
  bool has_factor;
  int32_t activation;
  float alpha;
  float limit;
  const ExpertRows* experts;
  int64_t num_experts;
  const int32_t* row;              // [assignments]: index of the hidden row
  const float* weight;             // [assignments]: routing weight
  const void* const* hidden_rows;  // [assignments], in Ops::operand
  void* const* inner_rows;         // [assignments], in Ops::operand: the activated values, which down takes
  float* sums;                     // [rows, hidden_size]
  void* output;                    // [rows, hidden_size], or null if sums are the output
  int32_t output_dtype;
};

// Whether all matrices that multiply hidden rows are stored transposed.
inline bool has_columns(const Job& job, const ExpertRows& expert) {
  return expert.up.is_transposed() && (!job.gated || expert.gate.is_transposed()) &&
         (!job.has_factor || expert.factor.is_transposed());
}

constexpr int64_t max_block_rows = 256;     // of hidden rows that are computed against the same weights
constexpr int64_t max_chunk_outputs = 256;  // of weight rows in one task
constexpr int64_t max_column_outputs = 1024;  // the same of transposed weights, so that whole pages are read
constexpr int64_t panel_outputs = 64;       // chunks are multiples of it if panels or tiles are packed

// A thread's own memory, for blocks of projections.
struct Scratch {
  static constexpr int64_t block_floats = 256 * 64;
  static constexpr int64_t panel_floats = 64 * 512;
  static constexpr int64_t kept_bytes = 16 * 1024;
  uint64_t message;  // a number of its own for each message
  alignas(64) float gate[block_floats];
  alignas(64) float up[block_floats];
  alignas(64) float factor[block_floats];
  alignas(64) float panel[panel_floats];
  alignas(64) unsigned char kept[kept_bytes];  // tiles of weights
  alignas(64) float tile_sums[3 * max_chunk_outputs * max_block_rows];
};

// The code of one tier for one stored format.
struct Ops {
  fiddler_dtype operand;   // of the hidden rows and of the activated values
  bool row_contiguous;     // computes in_stride == 1 and even sizes only
  int64_t min_panel_rows;  // fewer rows of an expert than this are computed without packing
  double rows_per_read;    // hidden rows whose multiplications take as long as reading the weight
  // Outputs [begin, end) of gate and up, and the activation, of one expert's rows.
  void (*inner)(const Job&, const ExpertRows&, int64_t begin, int64_t end, Scratch&);
  // Outputs [begin, end) of down for all experts, added up, and written to Job::output.
  void (*outer)(const Job&, int64_t begin, int64_t end, Scratch&);
  // Packs tiles [first, last) of an expert's hidden rows; null if hidden rows are used as they are.
  void (*pack)(const Job&, const ExpertRows&, int64_t first, int64_t last);
};

}  // namespace fiddler
