#include "tiers/avx512.h"
#include "vector.h"

namespace fiddler {
extern const Ops fp32_avx512;
const Ops fp32_avx512 = vector_ops<Avx512, Fp32>;
}  // namespace fiddler
