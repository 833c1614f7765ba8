// Chooses the code that computes a layer: by tier, stored format, and the message's dtype.
#pragma once

#include "attention/attention.h"
#include "job.h"

namespace fiddler {

// Whether this CPU and its operating system can run a tier; false if there is no such tier.
bool has_tier(int32_t tier);

// The fastest code of a tier that this CPU has, and that computes exactly enough: products of bfloat16 only if the
// hidden rows are bfloat16, weights are stored row by row, and sizes are even. Null for an unknown dtype.
const Ops* ops_for(int32_t tier, int32_t weight_dtype, int32_t hidden_dtype, bool rows_are_regular);

// A tier's attention over float32 or bfloat16.
const AttentionOps& attention_ops_for(int32_t tier, int32_t dtype);

}  // namespace fiddler
