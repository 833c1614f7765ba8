// The AMX tier with emulated tiles, under a name of its own.
#include "emulated_tiles.h"
#include "tiers/amx.h"
#include "vector.h"

namespace fiddler {
extern const Ops emulated_amx;
const Ops emulated_amx = vector_ops<AmxBf16, Bf16>;
extern const Ops emulated_coded_amx[];
const Ops emulated_coded_amx[] = {vector_ops<AmxBf16, E4m3>, vector_ops<AmxBf16, Int8>, vector_ops<AmxBf16, Uint8>,
                                  vector_ops<AmxBf16, Uint4>, vector_ops<AmxBf16, E2m1>};
}  // namespace fiddler
