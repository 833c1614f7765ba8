#include "tiers/avx2.h"
#include "vector.h"

namespace fiddler {
extern const Ops fp16_avx2;
const Ops fp16_avx2 = vector_ops<Avx2, Fp16>;
}  // namespace fiddler
