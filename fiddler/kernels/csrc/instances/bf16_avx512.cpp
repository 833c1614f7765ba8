#include "tiers/avx512.h"
#include "vector.h"

namespace fiddler {
extern const Ops bf16_avx512;
const Ops bf16_avx512 = vector_ops<Avx512, Bf16>;
}  // namespace fiddler
