#include "tiers/avx512.h"
#include "vector.h"

namespace fiddler {
extern const Ops fp16_avx512;
const Ops fp16_avx512 = vector_ops<Avx512, Fp16>;
}  // namespace fiddler
