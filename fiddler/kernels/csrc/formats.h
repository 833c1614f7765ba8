// Stored number formats, as bytes: a tensor may start at any byte of a file.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

namespace fiddler {

struct Bf16 {
  unsigned char bytes[2];
};
struct Fp16 {
  unsigned char bytes[2];
};
struct Fp32 {
  unsigned char bytes[4];
};

namespace {

template <class Bits, class Stored>
inline Bits bits_of(const Stored* stored) {
  static_assert(sizeof(Bits) == sizeof(Stored));
  Bits bits;
  std::memcpy(&bits, stored, sizeof bits);
  return bits;
}

inline float to_float(const float* value) { return *value; }
inline float to_float(const Fp32* stored) { return std::bit_cast<float>(bits_of<uint32_t>(stored)); }
inline float to_float(const Bf16* stored) { return std::bit_cast<float>(uint32_t{bits_of<uint16_t>(stored)} << 16); }

inline float to_float(const Fp16* stored) {
  const uint32_t bits = bits_of<uint16_t>(stored);
  const uint32_t sign = (bits & 0x8000u) << 16;
  const uint32_t magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // moves the exponent's bias from 15 to 127; right for denormals too, because the product is exact
  const float value = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(value));
}

inline void from_float(float value, float* to) { *to = value; }

// A bfloat16's bits, rounded to nearest, ties to even; a NaN stays one.
inline uint32_t bf16_bits(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x40u;
  return (bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded;
}

inline void from_float(float value, Bf16* to) {
  const auto stored = static_cast<uint16_t>(bf16_bits(value));
  std::memcpy(to, &stored, sizeof stored);
}

}  // namespace
}  // namespace fiddler
