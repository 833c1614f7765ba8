// AVX-512F: weights are widened to float32, sums are fused multiply-adds of float32.
#pragma once

#include <immintrin.h>

#include <type_traits>

#include "tiers/digits256.h"

namespace fiddler {
namespace {

struct Avx512 {
  using Vector = __m512;
  using Operand = float;
  static constexpr int width = 16;          // float32 lanes of a vector
  static constexpr int pair = 1;            // consecutive inputs that share a lane
  static constexpr int accumulators = 24;   // vectors of sums that fit in registers together with their operands
  static constexpr int panel_vectors = 4;   // of outputs in a packed panel
  static constexpr bool has_tiles = false;
  static constexpr int panel_inputs = 256;  // of a panel that is packed at a time
  static constexpr int64_t min_panel_rows = 97;  // fewer are computed without packing
  static constexpr int64_t cached_bytes = 512 * 1024;  // of hidden rows: half of the smallest second-level cache of such CPUs
  static constexpr double rows_per_read = 10;    // whose multiplications take as long as reading the weights

  static Vector zero() { return _mm512_setzero_ps(); }
  static Vector load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, Vector value) { _mm512_storeu_ps(to, value); }

  static Vector load_weights(const Bf16* from) {
    const __m256i stored = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(stored), 16));
  }
  // Every other value. The value after the last lane's is read, too.
  static Vector load_alternate(const Bf16* from) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(from), 16));
  }
  static Vector load_weights(const Fp16* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static Vector load_weights(const Fp32* from) { return _mm512_loadu_ps(reinterpret_cast<const float*>(from)); }

  static Vector load_operand(const float* from) { return _mm512_loadu_ps(from); }
  static Vector broadcast(const float* from) { return _mm512_set1_ps(*from); }
  static Vector dot(Vector sum, Vector weights, Vector x) { return _mm512_fmadd_ps(weights, x, sum); }
  static float sum(Vector value) { return _mm512_reduce_add_ps(value); }

  // Codes of 8 and 4 bits: a vector's worth, widened to float32, less the zero point. Those of E4m3 come out 256 times too
  // small, which their scales make up for.
  template <class Code>
  static constexpr float factor = std::is_same_v<Code, E4m3> ? 256.0f : 1.0f;
  template <class Code>
  static constexpr float pair_factor = factor<Code>;  // of what `decode` makes
  using Plain = Fp32;
  using Zero = Vector;
  template <class Code>
  using Digits = void;
  using Exact = Avx512;
  static constexpr int64_t coded_rows = 6;  // hidden rows up to which codes are multiplied as they are decoded

  static Vector splat(float value) { return _mm512_set1_ps(value); }
  static Vector two_splats(float low, float high) { return _mm512_mask_blend_ps(0xff00, splat(low), splat(high)); }
  static Vector multiply(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
  static Vector multiply_add(Vector sum, Vector a, Vector b) { return _mm512_fmadd_ps(a, b, sum); }
  static void store_plain(Fp32* to, Vector value) { _mm512_storeu_ps(reinterpret_cast<float*>(to), value); }

  template <class Code>
  static Vector wide_zero_point(int zero) {
    return splat(static_cast<float>(zero));
  }
  template <class Code>
  static Zero zero_point(int zero) {
    return wide_zero_point<Code>(zero);
  }
  template <class Code>
  static Vector decode_wide(const unsigned char* from, Vector zero) {
    const __m128i bytes = code_bits<Code> == 4 ? nibbles(from) : _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    if constexpr (std::is_same_v<Code, E4m3>) {
      const __m256i wide = _mm256_cvtepu8_epi16(bytes), magnitude = _mm256_and_si256(wide, _mm256_set1_epi16(0x7f));
      const __m256i is_nan = _mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x7f));
      const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x80)), 8);
      const __m256i nan = _mm256_and_si256(is_nan, _mm256_set1_epi16(0x7c00));
      return _mm512_cvtph_ps(_mm256_or_si256(_mm256_or_si256(_mm256_slli_epi16(magnitude, 7), sign), nan));
    } else if constexpr (std::is_same_v<Code, E2m1>) {
      const __m512 values = _mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f, -1.5f,
                                           -2.0f, -3.0f, -4.0f, -6.0f);
      return _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(bytes), values);
    } else if constexpr (std::is_same_v<Code, Int8>) {
      return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
    } else {
      return _mm512_sub_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)), zero);
    }
  }
  template <class Code>
  static Vector decode(const unsigned char* from, Zero zero) {
    return decode_wide<Code>(from, zero);
  }

  // Sixteen 4-bit codes as bytes.
  static __m128i nibbles(const unsigned char* from) {
    const __m128i both = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)), mask = _mm_set1_epi8(15);
    return _mm_unpacklo_epi8(_mm_and_si128(both, mask), _mm_and_si128(_mm_srli_epi16(both, 4), mask));
  }

  // Swaps the upper lanes of one row with the lower lanes of another, by 8, 4, 2 and 1.
  static void transpose(Vector (&rows)[16]) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#pragma GCC unroll 4
    for (int distance = 8; distance; distance /= 2) {
      const __mmask16 upper = _mm512_test_epi32_mask(lane, _mm512_set1_epi32(distance));
      // the second source's lanes are numbered from 16
      const __m512i to_low = _mm512_mask_add_epi32(lane, upper, lane, _mm512_set1_epi32(16 - distance));
      const __m512i moved = _mm512_add_epi32(lane, _mm512_set1_epi32(distance));
      const __m512i to_high = _mm512_mask_add_epi32(moved, upper, lane, _mm512_set1_epi32(16));
#pragma GCC unroll 16
      for (int row = 0; row < 16; ++row) {
        if (row & distance) continue;
        const Vector low = rows[row], high = rows[row + distance];
        rows[row] = _mm512_permutex2var_ps(low, to_low, high);
        rows[row + distance] = _mm512_permutex2var_ps(low, to_high, high);
      }
    }
  }
};

// Where hidden rows come as bfloat16, few of them are multiplied with 4-bit codes as digits.
struct Avx512Digits : Avx512 {
  template <class Code>
  using Digits = Digits256;
};

}  // namespace
}  // namespace fiddler
