// Attention of one token of each of several sequences, as tasks that threads take: a task is some positions of a head of
// keys and values, for all heads of queries that share it. Sums of positions are joined at the end.
#pragma once

#include "abi.h"

namespace fiddler {

constexpr int64_t attention_positions = 512;  // of a task; it depends on nothing, so that results do not either
constexpr int64_t attention_block = 64;       // positions whose scores are held: their keys and values stay in the first cache

// What a head of queries has of a task: the largest score, the sum of e^(score - largest), and, from `values` on, the
// values times these, in the order in which a tier loads them.
struct AttentionPart {
  float largest;
  float sum;
  float values[];
};

// The code of one tier for one dtype of queries, keys and values.
struct AttentionOps {
  // The place of the i-th of `size` values in the order in which the tier loads them.
  int64_t (*place)(int64_t i, int64_t size);
  // Positions [begin, end) of a row for `count` heads of queries.
  // queries: [count][key_size], in the tier's order, multiplied by the scale.
  // parts: `count` of them, `part_floats` apart.
  void (*attend)(const fiddler_attention& job, int64_t row, int64_t kv_head, int64_t begin, int64_t end,
                 const float* queries, int64_t count, float* parts, int64_t part_floats);
};

}  // namespace fiddler
