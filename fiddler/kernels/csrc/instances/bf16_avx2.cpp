#include "tiers/avx2.h"
#include "vector.h"

namespace fiddler {
extern const Ops bf16_avx2;
const Ops bf16_avx2 = vector_ops<Avx2, Bf16>;
}  // namespace fiddler
