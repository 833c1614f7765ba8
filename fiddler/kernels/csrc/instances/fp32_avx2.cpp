#include "tiers/avx2.h"
#include "vector.h"

namespace fiddler {
extern const Ops fp32_avx2;
const Ops fp32_avx2 = vector_ops<Avx2, Fp32>;
}  // namespace fiddler
