// One layer message, laid out for the code that computes it.
#pragma once

#include "abi.h"
#include "formats.h"

namespace fiddler {

// One expert's projection, logically [out, in].
struct Matrix {
  const unsigned char* weights;
  const float* bias;
  int64_t out_stride;
  int64_t in_stride;
};

// One expert that has rows: assignments [first, first + count).
struct ExpertRows {
  Matrix gate;
  Matrix up;
  Matrix down;
  Matrix factor;
  int64_t first;
  int64_t count;
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
  void* const* inner_rows;         // [assignments], in Ops::operand: what lies between up and down
  float* sums;                     // [rows, hidden_size]
  void* output;                    // [rows, hidden_size], or null where sums are the output
  int32_t output_dtype;
};

// Memory of one thread's own, for blocks of projections.
struct Scratch {
  static constexpr int64_t block_floats = 256 * 64;
  static constexpr int64_t panel_floats = 64 * 512;
  alignas(64) float gate[block_floats];
  alignas(64) float up[block_floats];
  alignas(64) float factor[block_floats];
  alignas(64) float panel[panel_floats];
  alignas(64) float carried[panel_floats];  // sums between two segments of a weight row
};

constexpr int64_t max_block_rows = 256;   // of hidden rows that are computed against one packed panel
constexpr int64_t max_chunk_outputs = 256;  // of weight rows in one task
constexpr int64_t panel_outputs = 64;     // chunks are multiples of it where panels are packed
constexpr int64_t min_panel_rows = 13;    // fewer rows than this are computed without packing

// What a (format, tier) computes.
struct Ops {
  fiddler_dtype operand;  // of the hidden rows and of what lies between the projections
  bool row_contiguous;    // computes in_stride == 1 and even sizes only
  // Outputs [begin, end) of gate and up, and the activation, of one expert's rows.
  void (*inner)(const Job&, const ExpertRows&, int64_t begin, int64_t end, Scratch&);
  // Outputs [begin, end) of down for all experts, added up, and written where Job::output says.
  void (*outer)(const Job&, int64_t begin, int64_t end, Scratch&);
};

}  // namespace fiddler
