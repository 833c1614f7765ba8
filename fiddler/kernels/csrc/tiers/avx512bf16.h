// AVX512_BF16: vdpbf16ps multiplies pairs of bfloat16 and adds them to float32. It reads denormals as 0. VNNI and VBMI
// are taken for granted: but for one generation of servers, CPUs with AVX512_BF16 have them.
#pragma once

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
// Lower or upper bytes of the bfloat16 of each e4m3 without its sign.
struct E4m3Bytes {
  unsigned char bytes[128];

  constexpr explicit E4m3Bytes(int shift) : bytes{} {
    for (int code = 0; code < 128; ++code) {
      const int exponent = code >> 3, fraction = code & 7;
      float value = static_cast<float>(exponent ? 8 + fraction : fraction) * 0x1p-9f;
      for (int i = 1; i < exponent; ++i) value *= 2.0f;
      const uint32_t bits = code == 127 ? 0x7fc00000u : std::bit_cast<uint32_t>(value);
      bytes[code] = static_cast<unsigned char>(bits >> shift);
    }
  }
};
alignas(64) constexpr E4m3Bytes e4m3_lower_bytes(16);
alignas(64) constexpr E4m3Bytes e4m3_upper_bytes(24);
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
  template <class Code>
  using Digits = std::conditional_t<code_bits<Code> == 4, Digits512,
                                    std::conditional_t<std::is_same_v<Code, E4m3>, void, Digits512Bytes>>;
  using Exact = Avx512Bf16;
  template <class Code>
  static constexpr float pair_factor = 1.0f;

  template <class Code>
  static Vector decode_wide(const unsigned char* from, Vector zero) {
    if constexpr (std::is_same_v<Code, E4m3>) {
      // each code in the two upper bytes of a float32
      const __m512i codes = _mm512_castsi128_si512(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
      const __m512i twice = _mm512_permutexvar_epi8(_mm512_mullo_epi32(lane_numbers(), _mm512_set1_epi32(0x01010101)), codes);
      constexpr __mmask64 lower_bytes = 0x4444444444444444, upper_bytes = 0x8888888888888888;
      const __m512i bits = _mm512_mask_mov_epi8(_mm512_maskz_mov_epi8(lower_bytes, lookup(e4m3_lower_bytes, twice)),
                                                upper_bytes, lookup(e4m3_upper_bytes, twice));
      return _mm512_castsi512_ps(
          _mm512_ternarylogic_epi32(bits, twice, _mm512_set1_epi32(static_cast<int32_t>(0x80000000u)), 0xf8));
    } else {
      return Avx512::decode_wide<Code>(from, zero);
    }
  }
  template <class Code>
  static constexpr float factor = 1.0f;

  static void store_plain(Bf16* to, Vector value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(value));
  }

  // What the codes of 4 bits stand for in one group, as 16 bfloat16.
  struct NibbleTable {
    __m512i values;

    NibbleTable(Vector codes, float scale)
        : values(_mm512_castsi256_si512((__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(codes, _mm512_set1_ps(scale))))) {}

    // 32 codes.
    void decode(const unsigned char* from, Bf16* to) const {
      _mm512_storeu_si512(to, _mm512_permutexvar_epi16(nibbles(from), values));
    }
  };
  struct Uint4Table : NibbleTable {
    Uint4Table(int zero, float scale)
        : NibbleTable(_mm512_cvtepi32_ps(_mm512_sub_epi32(lane_numbers(), _mm512_set1_epi32(zero))), scale) {}
  };
  struct E2m1Table : NibbleTable {
    E2m1Table(int, float scale)
        : NibbleTable(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_load_si256(
              reinterpret_cast<const __m256i*>(e2m1_values.values))), 16)), scale) {}
  };
  // 8-bit integers are not looked up, but two vectors of them are rounded at a time.
  template <class Code>
  struct BytesTable {
    Vector zero, scale;

    BytesTable(int zero, float scale) : zero(_mm512_set1_ps(static_cast<float>(zero))), scale(_mm512_set1_ps(scale)) {}

    void decode(const unsigned char* from, Bf16* to) const {
      const Vector low = scaled(from), high = scaled(from + 16);
      _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }

   private:
    Vector scaled(const unsigned char* from) const {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
      if constexpr (std::is_same_v<Code, Int8>) return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)), scale);
      return _mm512_mul_ps(_mm512_sub_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)), zero), scale);
    }
  };
  template <class Code>
    requires(!std::is_same_v<Code, E4m3>)
  using Table = std::conditional_t<std::is_same_v<Code, Uint4>, Uint4Table,
                                   std::conditional_t<std::is_same_v<Code, E2m1>, E2m1Table, BytesTable<Code>>>;

  template <class Code>
  static Zero zero_point(int zero) {
    return code_bits<Code> == 4 ? _mm512_set1_epi16(static_cast<short>(16 - zero)) : _mm512_set1_epi32(zero);
  }
  template <class Code>
  static Vector decode(const unsigned char* from, Zero zero) {
    if constexpr (code_bits<Code> == 4) {
      const __m512i index = nibbles(from);
      if constexpr (std::is_same_v<Code, E2m1>) {
        return _mm512_castsi512_ps(_mm512_permutexvar_epi16(index, _mm512_load_si512(e2m1_values.values)));
      } else {
        // from -16 on, so that a zero point moves the place
        return _mm512_castsi512_ps(_mm512_permutexvar_epi16(_mm512_add_epi16(index, zero), _mm512_load_si512(integers_from_minus_16.values)));
      }
    } else if constexpr (std::is_same_v<Code, E4m3>) {
      // each code twice, once for each byte of its bfloat16; the sign is no part of the places in the tables
      const __m512i codes = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
      const __m512i twice = _mm512_permutexvar_epi8(each_byte_twice(), codes);
      const __m512i lower = lookup(e4m3_lower_bytes, twice), upper = lookup(e4m3_upper_bytes, twice);
      constexpr __mmask64 upper_bytes = 0xaaaaaaaaaaaaaaaa;
      const __m512i bits = _mm512_mask_mov_epi8(lower, upper_bytes, upper);
      // bits | (twice & sign)
      return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(bits, twice, _mm512_set1_epi16(static_cast<short>(0x8000)), 0xf8));
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
  // 32 codes of 4 bits as integers of 16.
  static __m512i nibbles(const unsigned char* from) {
    const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    // (bytes | bytes << 12) & mask
    return _mm512_ternarylogic_epi32(bytes, _mm512_slli_epi32(bytes, 12), _mm512_set1_epi32(0x000f000f), 0xa8);
  }
  static __m512i lane_numbers() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
  static __m512i each_byte_twice() {
    const __m512i words = _mm512_cvtepu8_epi16(_mm256_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18,
                                                                19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31));
    return _mm512_or_si512(words, _mm512_slli_epi16(words, 8));
  }
  static __m512i lookup(const E4m3Bytes& table, __m512i index) {
    return _mm512_permutex2var_epi8(_mm512_load_si512(table.bytes), index, _mm512_load_si512(table.bytes + 64));
  }

  static Vector pairs(Vector low, Vector high) { return _mm512_castsi512_ps((__m512i)_mm512_cvtne2ps_pbh(high, low)); }
};

}  // namespace
}  // namespace fiddler
