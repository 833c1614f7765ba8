// AVX512_BF16: vdpbf16ps multiplies pairs of bfloat16 and adds them to float32. It reads denormals as 0.
#pragma once

#include <limits>

#include "tiers/avx512.h"
#include "tiers/digits512.h"

namespace fiddler {
namespace {

// bfloat16 of what 4-bit codes stand for, twice 16 in one vector.
struct Bf16Table {
  uint16_t values[32];

  template <class Value>
  constexpr explicit Bf16Table(Value value) : values{} {
    // the upper half of a float32 is a bfloat16
    for (int i = 0; i < 32; ++i) values[i] = static_cast<uint16_t>(std::bit_cast<uint32_t>(value(i)) >> 16);
  }
};
alignas(64) constexpr Bf16Table integers_from_minus_16([](int i) { return static_cast<float>(i - 16); });
// Denormals in their places, and what is not a number in the last one.
alignas(64) constexpr Bf16Table e4m3_specials([](int i) {
  return i == 31 ? std::numeric_limits<float>::quiet_NaN() : static_cast<float>(i) * 0x1p-9f;
});
alignas(64) constexpr Bf16Table e2m1_values([](int i) { return e2m1(static_cast<unsigned>(i) & 15u); });

struct Avx512Bf16 : Avx512 {
  using Operand = Bf16;
  static constexpr int pair = 2;

  // A vector is 16 pairs, of consecutive inputs in the lanes of one float32.
  static Vector load_weights(const Bf16* from) { return _mm512_loadu_ps(reinterpret_cast<const float*>(from)); }
  static Vector load_operand(const Bf16* from) { return _mm512_loadu_ps(reinterpret_cast<const float*>(from)); }
  static Vector broadcast(const Bf16* from) {
    int both;
    std::memcpy(&both, from, sizeof both);
    return _mm512_castsi512_ps(_mm512_set1_epi32(both));
  }
  static Vector dot(Vector sum, Vector weights, Vector x) {
    return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)x);
  }

  // Codes as pairs of bfloat16, which hold them exactly.
  using Plain = Bf16;
  using Zero = __m512i;
  using Digits = Digits512;
  using Exact = Avx512Bf16;
  template <class Code>
  static constexpr float pair_factor = 1.0f;

  static void store_plain(Bf16* to, Vector value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(value));
  }

  template <class Code>
  static Zero zero_point(int zero) {
    return code_bits<Code> == 4 ? _mm512_set1_epi16(static_cast<short>(16 - zero)) : _mm512_set1_epi32(zero);
  }
  template <class Code>
  static Vector decode(const unsigned char* from, Zero zero) {
    if constexpr (code_bits<Code> == 4) {
      const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
      const __m512i both = _mm512_or_si512(bytes, _mm512_slli_epi32(bytes, 12));
      const __m512i index = _mm512_and_si512(both, _mm512_set1_epi32(0x000f000f));
      if constexpr (std::is_same_v<Code, E2m1>) {
        return _mm512_castsi512_ps(_mm512_permutexvar_epi16(index, _mm512_load_si512(e2m1_values.values)));
      } else {
        // from -16 on, so that a zero point moves the place
        return _mm512_castsi512_ps(_mm512_permutexvar_epi16(_mm512_add_epi16(index, zero), _mm512_load_si512(integers_from_minus_16.values)));
      }
    } else if constexpr (std::is_same_v<Code, E4m3>) {
      // The exponent's bias moves from 7 to 127. Denormals, 0 and what is not a number come from a table: 0x7f is next to 0
      // once 1 is added, and has the last place there.
      const __m512i wide = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
      const __m512i magnitude = _mm512_and_si512(wide, _mm512_set1_epi16(0x7f));
      const __m512i next = _mm512_and_si512(_mm512_add_epi16(magnitude, _mm512_set1_epi16(1)), _mm512_set1_epi16(0x7f));
      const __mmask32 is_special = _mm512_cmple_epu16_mask(next, _mm512_set1_epi16(8));
      const __m512i usual = _mm512_add_epi16(_mm512_slli_epi16(magnitude, 4), _mm512_set1_epi16(0x3c00));
      const __m512i bits = _mm512_mask_permutexvar_epi16(usual, is_special, magnitude, _mm512_load_si512(e4m3_specials.values));
      const __m512i sign = _mm512_and_si512(_mm512_slli_epi16(wide, 8), _mm512_set1_epi16(static_cast<short>(0x8000)));
      return _mm512_castsi512_ps(_mm512_or_si512(bits, sign));
    } else {
      const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
      const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 16));
      if constexpr (std::is_same_v<Code, Int8>) {
        return pairs(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(low)), _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(high)));
      } else {
        return pairs(_mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_cvtepu8_epi32(low), zero)),
                     _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_cvtepu8_epi32(high), zero)));
      }
    }
  }

 private:
  static Vector pairs(Vector low, Vector high) { return _mm512_castsi512_ps((__m512i)_mm512_cvtne2ps_pbh(high, low)); }
};

}  // namespace
}  // namespace fiddler
