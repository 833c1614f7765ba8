#include "scalar.h"

namespace fiddler {
extern const Ops bf16_scalar;
const Ops bf16_scalar = scalar_ops<Bf16>;
}  // namespace fiddler
