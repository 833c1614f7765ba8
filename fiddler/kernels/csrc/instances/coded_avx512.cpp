#include "tiers/avx512.h"
#include "vector.h"

namespace fiddler {
extern const Ops coded_avx512[];
const Ops coded_avx512[] = {vector_ops<Avx512, E4m3>, vector_ops<Avx512, Int8>,
    vector_ops<Avx512, Uint8>, vector_ops<Avx512, Uint4>, vector_ops<Avx512, E2m1>};

extern const Ops coded_bf16_avx512[];
const Ops coded_bf16_avx512[] = {vector_ops<Avx512, E4m3>, vector_ops<Avx512, Int8>, vector_ops<Avx512, Uint8>,
    vector_ops<Avx512Digits, Uint4>, vector_ops<Avx512Digits, E2m1>};
}  // namespace fiddler
