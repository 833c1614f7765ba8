#include "tiers/amx.h"
#include "vector.h"

namespace fiddler {
extern const Ops bf16_amx;
const Ops bf16_amx = vector_ops<AmxBf16, Bf16>;
}  // namespace fiddler
