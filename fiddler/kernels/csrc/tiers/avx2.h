// AVX2 with FMA and F16C: as AVX-512, with half the lanes and half the registers.
#pragma once

#include <immintrin.h>

#include <type_traits>

#include "tiers/digits256.h"
#include "tiers/floats256.h"
#include "tiers/pairs256.h"
#include "tiers/words256.h"

namespace fiddler {
namespace {

struct Avx2 {
  using Vector = __m256;
  using Operand = float;
  static constexpr int width = 8;
  static constexpr int pair = 1;
  static constexpr int accumulators = 12;
  static constexpr int panel_vectors = 2;
  static constexpr bool has_tiles = false;
  static constexpr int panel_inputs = 256;
  static constexpr int64_t min_panel_rows = 25;  // fewer are computed without packing
  static constexpr int64_t cached_bytes = 256 * 1024;  // of hidden rows: half of the smallest second-level cache of such CPUs
  static constexpr double rows_per_read = 10;    // whose multiplications take as long as reading the weights

  static Vector zero() { return _mm256_setzero_ps(); }
  static Vector load(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, Vector value) { _mm256_storeu_ps(to, value); }

  static Vector load_weights(const Bf16* from) {
    const __m128i stored = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(stored), 16));
  }
  // Every other value. The value after the last lane's is read, too.
  static Vector load_alternate(const Bf16* from) {
    const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
  }
  static Vector load_weights(const Fp16* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static Vector load_weights(const Fp32* from) { return _mm256_loadu_ps(reinterpret_cast<const float*>(from)); }

  static Vector load_operand(const float* from) { return _mm256_loadu_ps(from); }
  static Vector broadcast(const float* from) { return _mm256_broadcast_ss(from); }
  static Vector dot(Vector sum, Vector weights, Vector x) { return _mm256_fmadd_ps(weights, x, sum); }

  static float sum(Vector value) { return Digits256::sum(value); }

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
  using Exact = Avx2;
  static constexpr int64_t coded_rows = 4;  // hidden rows up to which codes are multiplied as they are decoded

  // What is multiplied in ways of this tier's own: see floats256.h and pairs256.h.
  template <class Stored>
  static bool projects(const Matrix& matrix, int64_t count, int64_t length) {
    if constexpr (std::is_same_v<Stored, E4m3>) return Floats256::suits(matrix.coding, count, length);
    if constexpr (std::is_same_v<Stored, Bf16>) return !matrix.is_transposed() && count >= Pairs256::fewest_rows;
    return false;
  }
  template <class Stored>
  static void project(const Matrix* matrices, const Block* blocks, int num_matrices, int64_t begin, int64_t end,
                      const float* const* x, int64_t count, int64_t length, Scratch& scratch) {
    if constexpr (std::is_same_v<Stored, E4m3>) {
      Floats256::project(matrices, blocks, num_matrices, begin, end, x, count, length, scratch.message);
    } else if constexpr (std::is_same_v<Stored, Bf16>) {
      for (int i = 0; i < num_matrices; ++i) {
        Pairs256::project<Avx2>(matrices[i], blocks[i].results, begin, end, x, count, length, scratch);
      }
    }
  }

  static Vector splat(float value) { return _mm256_set1_ps(value); }
  static Vector two_splats(float value, float) { return splat(value); }  // no group is shorter than a vector
  static Vector multiply(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
  static Vector multiply_add(Vector sum, Vector a, Vector b) { return _mm256_fmadd_ps(a, b, sum); }
  static void store_plain(Fp32* to, Vector value) { _mm256_storeu_ps(reinterpret_cast<float*>(to), value); }

  template <class Code>
  static Zero wide_zero_point(int zero) {
    return splat(static_cast<float>(zero));
  }
  template <class Code>
  static Zero zero_point(int zero) {
    return wide_zero_point<Code>(zero);
  }
  template <class Code>
  static Vector decode_wide(const unsigned char* from, Zero zero) {
    const __m128i bytes = code_bits<Code> == 4 ? nibbles(from) : _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    if constexpr (std::is_same_v<Code, E4m3>) {
      const __m128i wide = _mm_cvtepu8_epi16(bytes), magnitude = _mm_and_si128(wide, _mm_set1_epi16(0x7f));
      const __m128i is_nan = _mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7f));
      const __m128i sign = _mm_slli_epi16(_mm_and_si128(wide, _mm_set1_epi16(0x80)), 8);
      const __m128i nan = _mm_and_si128(is_nan, _mm_set1_epi16(0x7c00));
      return _mm256_cvtph_ps(_mm_or_si128(_mm_or_si128(_mm_slli_epi16(magnitude, 7), sign), nan));
    } else if constexpr (std::is_same_v<Code, E2m1>) {
      const __m256i index = _mm256_cvtepu8_epi32(bytes);
      const __m256 values = _mm256_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f);
      const __m256i sign = _mm256_slli_epi32(_mm256_and_si256(index, _mm256_set1_epi32(8)), 28);
      return _mm256_xor_ps(_mm256_permutevar8x32_ps(values, index), _mm256_castsi256_ps(sign));
    } else if constexpr (std::is_same_v<Code, Int8>) {
      return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    } else {
      return _mm256_sub_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)), zero);
    }
  }
  template <class Code>
  static Vector decode(const unsigned char* from, Zero zero) {
    return decode_wide<Code>(from, zero);
  }

  // Eight 4-bit codes as bytes.
  static __m128i nibbles(const unsigned char* from) {
    int32_t packed;
    std::memcpy(&packed, from, sizeof packed);
    const __m128i both = _mm_cvtsi32_si128(packed), mask = _mm_set1_epi8(15);
    return _mm_unpacklo_epi8(_mm_and_si128(both, mask), _mm_and_si128(_mm_srli_epi16(both, 4), mask));
  }

  // Swaps the upper lanes of one row with the lower lanes of another, by 4, 2 and 1.
  static void transpose(Vector (&r)[8]) {
    for (int i = 0; i < 4; ++i) {
      const Vector low = r[i], high = r[i + 4];
      r[i] = _mm256_permute2f128_ps(low, high, 0x20);
      r[i + 4] = _mm256_permute2f128_ps(low, high, 0x31);
    }
    for (int i = 0; i < 6; i += i == 1 ? 3 : 1) {
      const Vector low = r[i], high = r[i + 2];
      r[i] = _mm256_shuffle_ps(low, high, 0x44);
      r[i + 2] = _mm256_shuffle_ps(low, high, 0xee);
    }
    for (int i = 0; i < 8; i += 2) {
      const Vector low = r[i], high = r[i + 1];
      // alternate lanes of both, then in their order
      const Vector even = _mm256_shuffle_ps(low, high, 0x88), odd = _mm256_shuffle_ps(low, high, 0xdd);
      r[i] = _mm256_shuffle_ps(even, even, 0xd8);
      r[i + 1] = _mm256_shuffle_ps(odd, odd, 0xd8);
    }
  }
};

// Where hidden rows come as bfloat16, few of them are multiplied with integer codes as integers: see digits256.h for 4 bits
// and words256.h for 8.
struct Avx2Digits : Avx2 {
  template <class Code>
  using Digits = std::conditional_t<code_bits<Code> == 4, Digits256, void>;

  template <class Code>
  static bool projects(const Matrix& matrix, int64_t count, int64_t length) {
    return code_bits<Code> == 8 && Words256::suits<Code>(matrix.coding, count, length);
  }
  template <class Code>
  static void project(const Matrix* matrices, const Block* blocks, int num_matrices, int64_t begin, int64_t end,
                      const float* const* x, int64_t count, int64_t length, Scratch& scratch) {
    if constexpr (code_bits<Code> == 8) {
      Words256::project<Code>(matrices, blocks, num_matrices, begin, end, x, count, length, scratch.message);
    }
  }
};

}  // namespace
}  // namespace fiddler
