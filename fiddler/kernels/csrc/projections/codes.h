// Codes of 8 and 4 bits and their scales, one at a time: what faster code is held against. fiddler/coding.py says the same
// in PyTorch.
#pragma once

#include "formats.h"
#include "job.h"

namespace fiddler {

// Types of codes, each one byte of memory; of 4-bit codes a byte holds two, the first in its low half.
struct E4m3 {
  unsigned char byte;
};
struct Int8 {
  unsigned char byte;
};
struct Uint8 {
  unsigned char byte;
};
struct Uint4 {
  unsigned char byte;
};
struct E2m1 {
  unsigned char byte;
};

namespace {

template <class Stored>
constexpr bool is_coded = false;
template <>
constexpr bool is_coded<E4m3> = true;
template <>
constexpr bool is_coded<Int8> = true;
template <>
constexpr bool is_coded<Uint8> = true;
template <>
constexpr bool is_coded<Uint4> = true;
template <>
constexpr bool is_coded<E2m1> = true;

template <class Code>
constexpr int code_bits = 8;
template <>
constexpr int code_bits<Uint4> = 4;
template <>
constexpr int code_bits<E2m1> = 4;

// The code of the weight 0 in a group that has no zero point of its own.
template <class Code>
constexpr int usual_zero = 0;
template <>
constexpr int usual_zero<Uint8> = 128;
template <>
constexpr int usual_zero<Uint4> = 8;

// Bits of an e4m3 as the float16 that is 2^-8 times as large, denormals included; not a number stays not a number.
inline uint16_t e4m3_as_half(unsigned char code) {
  const auto magnitude = static_cast<uint16_t>((code & 0x7fu) == 0x7fu ? 0x7e00u : (code & 0x7fu) << 7);
  return static_cast<uint16_t>(magnitude | (code & 0x80u) << 8);
}

inline float e4m3(unsigned char code) {
  const uint16_t bits = e4m3_as_half(code);
  Fp16 half;
  std::memcpy(&half, &bits, sizeof half);
  return to_float(&half) * 256.0f;
}

inline unsigned nibble(const unsigned char* row, int64_t i) { return row[i / 2] >> (i % 2 * 4) & 15u; }

constexpr float e2m1(unsigned code) {
  constexpr float values[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
  return code & 8u ? -values[code & 7u] : values[code & 7u];
}

// Input i of a row of codes, less the zero point.
template <class Code>
float decode(const unsigned char* row, int64_t i, int zero);
template <>
inline float decode<E4m3>(const unsigned char* row, int64_t i, int) {
  return e4m3(row[i]);
}
template <>
inline float decode<Int8>(const unsigned char* row, int64_t i, int) {
  return static_cast<float>(static_cast<signed char>(row[i]));
}
template <>
inline float decode<Uint8>(const unsigned char* row, int64_t i, int zero) {
  return static_cast<float>(row[i] - zero);
}
template <>
inline float decode<Uint4>(const unsigned char* row, int64_t i, int zero) {
  return static_cast<float>(static_cast<int>(nibble(row, i)) - zero);
}
template <>
inline float decode<E2m1>(const unsigned char* row, int64_t i, int) {
  return e2m1(nibble(row, i));
}

inline float e8m0(unsigned char exponent) {
  // 2^-127 is no normal number, and 255 is not a number: both have this bit; without branches, loops become vectors
  const uint32_t ends = exponent == 0 || exponent == 255 ? 1u << 22 : 0u;
  return std::bit_cast<float>(uint32_t{exponent} << 23 | ends);
}

template <class Load>
inline void fill_scales(int64_t count, float factor, float* to, Load load) {
  for (int64_t g = 0; g < count; ++g) to[g] = load(g) * factor;
}

// The scales [first, first + count) of an output, times `factor`.
inline void load_scales(const Coding& coding, int64_t output, int64_t first, int64_t count, float factor, float* to) {
  const int64_t begin = coding.first_group(output) + first;
  const unsigned char* scales = coding.scales;
  factor *= coding.multiplier;
  switch (coding.scale_kind) {
    case FIDDLER_SCALE_FLOAT32:
      return fill_scales(count, factor, to, [=](int64_t g) { return to_float(reinterpret_cast<const Fp32*>(scales) + begin + g); });
    case FIDDLER_SCALE_BFLOAT16:
      return fill_scales(count, factor, to, [=](int64_t g) { return to_float(reinterpret_cast<const Bf16*>(scales) + begin + g); });
    case FIDDLER_SCALE_FLOAT16:
      return fill_scales(count, factor, to, [=](int64_t g) { return to_float(reinterpret_cast<const Fp16*>(scales) + begin + g); });
    case FIDDLER_SCALE_E8M0:
      return fill_scales(count, factor, to, [=](int64_t g) { return e8m0(scales[begin + g]); });
    default:
      return fill_scales(count, factor, to, [=](int64_t g) { return e4m3(scales[begin + g]); });
  }
}

template <class Code>
inline int zero_of(const Coding& coding, int64_t output, int64_t group) {
  return coding.zeros ? coding.zeros[coding.first_group(output) + group] : usual_zero<Code>;
}

}  // namespace
}  // namespace fiddler
