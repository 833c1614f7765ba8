#include "tiers/amx.h"
#include "vector.h"

namespace fiddler {
extern const Ops coded_amx[];
const Ops coded_amx[] = {vector_ops<AmxBf16, E4m3>, vector_ops<AmxBf16, Int8>,
    vector_ops<AmxBf16, Uint8>, vector_ops<AmxBf16, Uint4>, vector_ops<AmxBf16, E2m1>};
}  // namespace fiddler
