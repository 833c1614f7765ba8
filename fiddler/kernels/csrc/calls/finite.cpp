// fiddler_is_finite: what experts gave is looked at in every layer.

#include <cstring>

#include "abi.h"

namespace {

// Whether any of the numbers has all bits of the exponent set. The loop has no exit, so that it becomes vectors.
template <class Bits>
bool any_is_special(const void* values, int64_t count, Bits exponent) {
  const auto* bytes = static_cast<const unsigned char*>(values);
  bool found = false;
  for (int64_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, bytes + i * static_cast<int64_t>(sizeof bits), sizeof bits);
    found |= (bits & exponent) == exponent;
  }
  return found;
}

}  // namespace

extern "C" int32_t fiddler_is_finite(const void* values, int64_t count, int32_t dtype) {
  if (dtype == FIDDLER_FLOAT32) return !any_is_special<uint32_t>(values, count, 0x7f800000u);
  return !any_is_special<uint16_t>(values, count, dtype == FIDDLER_FLOAT16 ? uint16_t{0x7c00} : uint16_t{0x7f80});
}
