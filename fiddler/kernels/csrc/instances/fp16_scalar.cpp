#include "scalar.h"

namespace fiddler {
extern const Ops fp16_scalar;
const Ops fp16_scalar = scalar_ops<Fp16>;
}  // namespace fiddler
