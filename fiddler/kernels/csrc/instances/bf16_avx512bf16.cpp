#include "tiers/avx512bf16.h"
#include "vector.h"

namespace fiddler {
extern const Ops bf16_avx512bf16;
const Ops bf16_avx512bf16 = vector_ops<Avx512Bf16, Bf16>;
}  // namespace fiddler
