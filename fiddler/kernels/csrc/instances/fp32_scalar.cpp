#include "scalar.h"

namespace fiddler {
extern const Ops fp32_scalar;
const Ops fp32_scalar = scalar_ops<Fp32>;
}  // namespace fiddler
