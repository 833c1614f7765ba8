// The AMX tier with emulated tiles, under a name of its own.
#include "emulated_tiles.h"
#include "tiers/amx.h"
#include "vector.h"

namespace fiddler {
extern const Ops emulated_amx;
const Ops emulated_amx = vector_ops<AmxBf16, Bf16>;
}  // namespace fiddler
