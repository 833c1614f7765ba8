#include "tiers/avx2.h"
#include "vector.h"

namespace fiddler {
extern const Ops coded_avx2[];
const Ops coded_avx2[] = {vector_ops<Avx2, E4m3>, vector_ops<Avx2, Int8>,
    vector_ops<Avx2, Uint8>, vector_ops<Avx2, Uint4>, vector_ops<Avx2, E2m1>};

extern const Ops coded_bf16_avx2[];
const Ops coded_bf16_avx2[] = {vector_ops<Avx2, E4m3>, vector_ops<Avx2Digits, Int8>, vector_ops<Avx2Digits, Uint8>,
    vector_ops<Avx2Digits, Uint4>, vector_ops<Avx2Digits, E2m1>};
}  // namespace fiddler
