#include "tiers/avx512bf16.h"
#include "vector.h"

namespace fiddler {
extern const Ops coded_avx512bf16[];
const Ops coded_avx512bf16[] = {vector_ops<Avx512Bf16, E4m3>, vector_ops<Avx512Bf16, Int8>,
    vector_ops<Avx512Bf16, Uint8>, vector_ops<Avx512Bf16, Uint4>, vector_ops<Avx512Bf16, E2m1>};
}  // namespace fiddler
