#include "attention/scalar_attention.h"

namespace fiddler {
extern const AttentionOps attention_scalar[];
const AttentionOps attention_scalar[] = {scalar_attention<Fp32>, scalar_attention<Bf16>};
}  // namespace fiddler
