#include "scalar.h"

namespace fiddler {
extern const Ops coded_scalar[];
const Ops coded_scalar[] = {scalar_ops<E4m3>, scalar_ops<Int8>,
    scalar_ops<Uint8>, scalar_ops<Uint4>, scalar_ops<E2m1>};
}  // namespace fiddler
