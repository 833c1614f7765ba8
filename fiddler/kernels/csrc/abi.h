// The C interface that native.py binds. Strides count elements. The library keeps no pointer after a call returns.
#pragma once

#include <cstdint>

enum fiddler_dtype : int32_t { FIDDLER_FLOAT32 = 0, FIDDLER_BFLOAT16 = 1, FIDDLER_FLOAT16 = 2 };

// Codes of 8 or 4 bits, numbered on from the dtypes of plain weights; fiddler/coding.py says what they mean.
constexpr int32_t FIDDLER_FIRST_CODE = FIDDLER_FLOAT16 + 1;
enum fiddler_code : int32_t {
  FIDDLER_E4M3 = FIDDLER_FIRST_CODE,
  FIDDLER_INT8,
  FIDDLER_UINT8,
  FIDDLER_UINT4,
  FIDDLER_E2M1,
  FIDDLER_NUM_FORMATS,
};

enum fiddler_scale : int32_t {
  FIDDLER_SCALE_FLOAT32 = 0,
  FIDDLER_SCALE_BFLOAT16 = 1,
  FIDDLER_SCALE_FLOAT16 = 2,
  FIDDLER_SCALE_E8M0 = 3,
  FIDDLER_SCALE_E4M3 = 4,
  FIDDLER_NUM_SCALES = 5,
};

enum fiddler_activation : int32_t {
  FIDDLER_SILU = 0,
  FIDDLER_GELU_ERF = 1,
  FIDDLER_GELU_TANH = 2,
  FIDDLER_RELU = 3,
  FIDDLER_RELU_SQUARED = 4,
  FIDDLER_CLAMPED_SWIGLU = 5,  // gpt-oss: min(gate, limit) * sigmoid(alpha * gate) * (clamp(up) + 1)
  FIDDLER_CLAMPED_SILU = 6,    // DeepSeek-V4: silu(min(gate, limit)) * clamp(up)
};

enum fiddler_status : int32_t {
  FIDDLER_OK = 0,
  FIDDLER_NULL_POINTER = 1,
  FIDDLER_BAD_SIZE = 2,
  FIDDLER_BAD_DTYPE = 3,
  FIDDLER_BAD_EXPERT_ID = 4,
  FIDDLER_BAD_TIER = 5,
  FIDDLER_MISALIGNED = 6,
  FIDDLER_BUSY = 7,
  FIDDLER_NO_MEMORY = 8,
  FIDDLER_NOT_FINITE = 9,
};

#pragma GCC visibility push(default)
extern "C" {

// One projection of all of a layer's experts, logically [out, in].
struct fiddler_projection {
  const void* const* weights;  // [num_experts]: the address of element [0, 0]; any alignment
  const float* const* biases;  // [num_experts], or null
  int64_t out_stride;  // of codes in bytes, which must then be adjacent along the inputs
  int64_t in_stride;
  // Of coded weights only: scales is null where they are plain.
  const void* const* scales;            // [num_experts]: [groups of outputs, groups of inputs]
  const unsigned char* const* zeros;    // [num_experts]: as many zero points, or null where the code's usual one holds
  const float* multipliers;             // [num_experts]
  int64_t scales_stride;                // scales from one group of outputs to the next
  int64_t group_inputs;                 // a multiple of 32, or 16 without zero points, or all inputs
  int64_t group_outputs;
  int64_t first_output;                 // outputs of the first group that come before this matrix
  int32_t scale_kind;
};

struct fiddler_layer {
  int64_t num_experts;
  int64_t hidden_size;
  int64_t intermediate_size;
  int32_t weight_dtype;  // a fiddler_dtype or a fiddler_code
  int32_t activation;
  float alpha;
  float limit;
  fiddler_projection gate;  // weights is null if the experts are not gated
  fiddler_projection up;
  fiddler_projection down;
  fiddler_projection factor;  // multiplies up, output by output (OpenMoE); weights is null if the experts have none
};

struct fiddler_message {
  int64_t rows;
  int64_t experts_per_row;
  const void* hidden;            // [rows, hidden_size]
  const int32_t* expert_ids;     // [rows, experts_per_row]; -1: computed elsewhere
  const float* routing_weights;  // [rows, experts_per_row]
  void* output;                  // [rows, hidden_size]
  int32_t hidden_dtype;          // float32 or bfloat16
  int32_t output_dtype;
};

// One matrix times rows: output[r] = weights x input[r] + bias, summed in float32 and rounded once.
struct fiddler_product {
  fiddler_projection weights;  // of one matrix
  int64_t outputs;
  int64_t inputs;
  int64_t rows;
  const void* input;     // [rows, inputs]
  void* output;          // [rows, outputs]
  int32_t weight_dtype;  // a fiddler_dtype or a fiddler_code
  int32_t input_dtype;   // float32 or bfloat16
  int32_t output_dtype;
};

// One token of each of several sequences attends to its sequence's keys and values: softmax(scale * q k) v, in float32,
// rounded once. Each vector of a head is contiguous.
struct fiddler_attention {
  int64_t rows;
  int64_t heads;
  int64_t kv_heads;  // heads / kv_heads heads of queries share one of keys and values
  int64_t length;    // positions
  int64_t key_size;
  int64_t value_size;
  const void* queries;  // [rows, heads, key_size]
  const void* keys;     // [rows, kv_heads, length, key_size]
  const void* values;   // [rows, kv_heads, length, value_size]
  int64_t query_row_stride;
  int64_t query_head_stride;
  int64_t key_row_stride;
  int64_t key_head_stride;
  int64_t key_stride;
  int64_t value_row_stride;
  int64_t value_head_stride;
  int64_t value_stride;
  const uint8_t* visible;  // [rows, length]: 0 hides a position; null: all are visible
  int64_t visible_stride;  // from one row to the next; 0 if all have the same
  const float* sinks;      // [heads]: a score that takes part in the softmax and has no value; null: none
  void* output;            // [rows, heads, value_size], contiguous
  float scale;
  int32_t dtype;  // of queries, keys, values and output: float32 or bfloat16
};

// weight * (input / sqrt(mean(input^2) + epsilon)), in float32; rounded before the weight, too, if `rounds_first`.
struct fiddler_norm {
  const void* weight;  // [size] bfloat16; null: there is no such norm
  int64_t size;
  float epsilon;
  int32_t rounds_first;
};

enum fiddler_scoring : int32_t {
  FIDDLER_SOFTMAX = 0,            // over all experts, before the choice
  FIDDLER_SOFTMAX_OF_CHOSEN = 1,  // over the chosen, after it
  FIDDLER_SIGMOID = 2,
};

// Chooses k experts for each row by the scores of its logits, rows x gate, in float32.
struct fiddler_router {
  fiddler_product gate;  // the call sets all but weights and sizes; logits are of float32 if `keeps_logits`
  int64_t k;
  int32_t scoring;
  int32_t keeps_logits;      // otherwise they are rounded to bfloat16 first
  int32_t rounds_weights;    // to bfloat16, at last
  int32_t normalizes;        // divides the weights of a row by their sum
  float added;               // to that sum
  float factor;              // of the weights
  const float* corrections;  // [experts], added to scores for the choice alone; null: none
  int64_t groups;            // of experts next to each other; a group counts by the sum of its two best
  int64_t kept_groups;       // only the best of these are chosen from
};

// A decoder layer up to its experts, for one token of each of several sequences, in bfloat16:
//   rows                = before(hidden)
//   queries, keys, values = rows x three matrices; queries and keys normalised, and each head turned by its angles
//   keys and values at the position of their sequence = the new ones
//   residual            = hidden + attention x out
//   normed              = after(residual)
// What each line gives is rounded to bfloat16, and so are the two products of a turn.
struct fiddler_attention_block {
  fiddler_product query, key, value, out;  // weights and sizes; the call sets the rest
  fiddler_norm before, query_norm, key_norm, after;  // query_norm and key_norm: of a head, or of all heads of a row
  fiddler_attention attention;  // of bfloat16; the call sets queries and output, and writes new keys and values
  const int64_t* positions;     // [rows]
  const void* cosines;          // [rows, angles]
  const void* sines;
  int64_t turned;      // values of a head that are turned: the first ones
  int64_t angles;      // as many, or half as many where both halves of them have the same
  const void* hidden;  // [rows, inputs of query]
  void* residual;
  void* normed;
  const fiddler_router* router;  // chooses experts for the normed rows, see fiddler_route; null: nothing does
  float* logits;
  float* routing_weights;
  int32_t* expert_ids;
};

struct fiddler_pool;

// One worker for each CPU, pinned to it; `nodes` are their NUMA nodes, numbered from 0. Null if the system refuses
// threads.
fiddler_pool* fiddler_pool_create(const int32_t* cpus, const int32_t* nodes, int32_t count, int32_t spin_microseconds);
void fiddler_pool_destroy(fiddler_pool* pool);

// Where several threads compute messages, each holds the pool meanwhile; the others wait here. Unlocked by the thread
// that locked it.
void fiddler_pool_lock(fiddler_pool* pool);
void fiddler_pool_unlock(fiddler_pool* pool);

// Names of the numbers that this interface uses, from 0 on; null beyond the last one.
const char* fiddler_tier_name(int32_t tier);  // slowest first; 0 is the scalar one, which every CPU runs
const char* fiddler_dtype_name(int32_t dtype);
const char* fiddler_code_name(int32_t code);  // from 0 for the first code
const char* fiddler_scale_name(int32_t scale);
const char* fiddler_activation_name(int32_t activation);
const char* fiddler_status_text(int32_t status);

// Whether this CPU and its operating system can run a tier.
int32_t fiddler_has_tier(int32_t tier);

// The first of a matrix's outputs that a node's threads compute; at node == num_nodes, the number of outputs. Copies
// are placed by it (see fiddler_copy), so that each node reads its own memory.
int64_t fiddler_node_begin(int64_t outputs, int32_t node, int32_t num_nodes);

// output[r] = sum over r's experts of routing weight x expert(hidden[r]), summed in float32.
int32_t fiddler_run(fiddler_pool* pool, int32_t tier, const fiddler_layer* layer, const fiddler_message* message);

// What linear layers compute: 1 to FIDDLER_MOST_PRODUCTS products of as many rows, one after another.
constexpr int32_t FIDDLER_MOST_PRODUCTS = 4;
int32_t fiddler_multiply(fiddler_pool* pool, int32_t tier, const fiddler_product* const* products, int32_t count);

// input / sqrt(mean(input^2) + epsilon) * weight for each row of bfloat16, in float32; rounded before the weight, too,
// if `rounds_first`. Computed by the calling thread.
int32_t fiddler_normalize(int64_t rows, int64_t size, const void* input, const void* weight, void* output, float epsilon,
                          int32_t rounds_first);

// What the attention of a decode step computes.
int32_t fiddler_attend(fiddler_pool* pool, int32_t tier, const fiddler_attention* job);

// What a layer of a decode step computes before its experts, and which they are, in one call.
int32_t fiddler_attend_block(fiddler_pool* pool, int32_t tier, const fiddler_attention_block* block);

// Routes [rows, inputs of the gate] of bfloat16: logits are [rows, experts]; weights and ids [rows, k], the best first.
int32_t fiddler_route(fiddler_pool* pool, int32_t tier, const fiddler_router* router, int64_t rows, const void* hidden,
                      float* logits, float* weights, int32_t* ids);

// Whether none of `count` values of a fiddler_dtype is infinite or not a number. At any alignment.
int32_t fiddler_is_finite(const void* values, int64_t count, int32_t dtype);

// Codes rows of plain weights in 8 or 4 bits, symmetric: conversion/quantize.cpp.
int32_t fiddler_quantize(const void* weights, int32_t dtype, int64_t row_stride, int64_t rows, int64_t inputs,
                         int32_t bits, uint8_t* codes, uint16_t* scales);

// Reads [data, data + bytes) once: split over the pool's threads, and each thread's share over `streams`. Returns a
// checksum, so that the compiler cannot remove the reads.
uint64_t fiddler_read(fiddler_pool* pool, const void* data, int64_t bytes, int32_t streams);

// Copies `count` ranges, each by the threads of its node: a page is placed on the node of the thread that first writes
// it.
int32_t fiddler_copy(fiddler_pool* pool, void* const* to, const void* const* from, const int64_t* bytes,
                     const int32_t* nodes, int64_t count);
}
#pragma GCC visibility pop
