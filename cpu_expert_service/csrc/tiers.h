// Which code computes a layer: by tier, stored format, and what the message brings.
#pragma once

#include "job.h"

namespace fiddler {

bool has_tier(int32_t tier);

// The fastest code within a tier that computes this exactly enough: bfloat16 products only where the hidden rows are
// bfloat16, weights lie row by row, and sizes are even. Null for a dtype that has none.
const Ops* ops_for(int32_t tier, int32_t weight_dtype, int32_t hidden_dtype, bool rows_are_regular);

}  // namespace fiddler
