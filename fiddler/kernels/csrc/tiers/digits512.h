// AVX-512 VNNI: integer codes multiplied with the two digits of hidden rows, 128 inputs at a time, which are two vectors of
// bytes. A lane of sums has four bytes of both.
#pragma once

#include <immintrin.h>

#include <type_traits>

#include "projections/digits.h"

namespace fiddler {
namespace {

struct Digits512Base {
  using Vector = __m512;
  static constexpr int64_t inputs = 128;  // of a block
  static constexpr int64_t lanes = 16;
  static constexpr int64_t rows_at_a_time = 4;

  static Vector zero() { return _mm512_setzero_ps(); }
  static Vector multiply(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
  static Vector multiply_add(Vector sum, Vector a, Vector b) { return _mm512_fmadd_ps(a, b, sum); }
  static float sum(Vector value) { return _mm512_reduce_add_ps(value); }

  // 128 inputs x as (256 * high + low) * scale.
  struct alignas(64) Block {
    signed char high[2][64], low[2][64];
    int32_t offset[lanes];  // what makes of a lane's sum of products one with codes that count from their zero
    float scale[lanes];     // of each lane
  };

  struct Codes {
    __m512i first, second;
  };

  // Codes that are larger in each lane by what spread_shifts() gave.
  static Codes shifted(const Codes& codes, __m512i shifts) {
    return {_mm512_add_epi8(codes.first, shifts), _mm512_add_epi8(codes.second, shifts)};
  }

  // Each lane's sum of products with R weight rows, exactly, before scales.
  template <int R>
  static void dot(const Codes (&codes)[R], const Block& x, Vector (&products)[R]) {
    const __m512i high_first = _mm512_load_si512(x.high[0]), high_second = _mm512_load_si512(x.high[1]);
    const __m512i low_first = _mm512_load_si512(x.low[0]), low_second = _mm512_load_si512(x.low[1]);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      __m512i sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes[r].first, high_first);
      sums = _mm512_slli_epi32(_mm512_dpbusd_epi32(sums, codes[r].second, high_second), 8);
      sums = _mm512_add_epi32(sums, _mm512_load_si512(x.offset));
      sums = _mm512_dpbusd_epi32(sums, codes[r].first, low_first);
      products[r] = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(sums, codes[r].second, low_second));
    }
  }

  // Which of the scales from a block's first group on belongs to each lane.
  using Lanes = __m512i;
  static Lanes lanes_of_groups(int64_t group_inputs) {
    alignas(64) int32_t groups[lanes];
    for (int i = 0; i < lanes; ++i) groups[i] = static_cast<int32_t>(i * 8 / group_inputs);
    return _mm512_load_si512(groups);
  }
  static Vector spread(const float* scales, Lanes groups) { return _mm512_permutexvar_ps(groups, _mm512_loadu_ps(scales)); }
  static __m512i spread_shifts(const uint32_t* shifts, Lanes groups) {
    return _mm512_permutexvar_epi32(groups, _mm512_loadu_si512(shifts));
  }
  static Vector scales(const Block& x) { return _mm512_load_ps(x.scale); }

 protected:
  // For codes that count from `zero`.
  static void write_offset(int zero, Block& to) {
    const __m512i ones = _mm512_set1_epi8(1);
    __m512i sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, _mm512_load_si512(to.high[0]));
    sums = _mm512_slli_epi32(_mm512_dpbusd_epi32(sums, ones, _mm512_load_si512(to.high[1])), 8);
    sums = _mm512_dpbusd_epi32(sums, ones, _mm512_load_si512(to.low[0]));
    sums = _mm512_dpbusd_epi32(sums, ones, _mm512_load_si512(to.low[1]));
    _mm512_store_si512(to.offset, _mm512_mullo_epi32(sums, _mm512_set1_epi32(-zero)));
  }

  static __m512i larger(__m512i largest, Vector values) {
    const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(values), _mm512_set1_epi32(0x7fffffff));
    return _mm512_max_epu32(largest, magnitude);
  }

  static void write_digits(Vector values, signed char* high, signed char* low) {
    const __m512i integers = _mm512_min_epi32(_mm512_cvtps_epi32(values), _mm512_set1_epi32(largest_of_digits));
    const __m512i highs = _mm512_srai_epi32(_mm512_add_epi32(integers, _mm512_set1_epi32(128)), 8);
    const __m512i lows = _mm512_sub_epi32(integers, _mm512_slli_epi32(highs, 8));
    _mm_store_si128(reinterpret_cast<__m128i*>(high), _mm512_cvtepi32_epi8(highs));
    _mm_store_si128(reinterpret_cast<__m128i*>(low), _mm512_cvtepi32_epi8(lows));
  }
};

// 4-bit codes: the low halves of 64 bytes are the even ones of 128 inputs, the high halves the odd ones. Each 32 inputs
// have a scale.
struct Digits512 : Digits512Base {
  static constexpr bool takes_small_groups = true;
  static constexpr int64_t fewest_rows = 1, most_rows = 12;  // hidden rows for which this is the fastest way
  // The kind of scales that spread_stored() reads.
  template <class Code>
  static constexpr int stored_scale = std::is_same_v<Code, E2m1> ? FIDDLER_SCALE_E8M0 : FIDDLER_SCALE_BFLOAT16;

  // The scales of four groups as float32, each in the four lanes of its group.
  template <class Code>
  static Vector spread_stored(const unsigned char* from) {
    if constexpr (std::is_same_v<Code, E2m1>) {
      int32_t four;
      std::memcpy(&four, from, sizeof four);
      // a group's byte becomes the upper one of its lanes, and the others 0
      const __m512i places = of_groups(0x00808080, 0x01808080, 0x02808080, 0x03808080);
      const __m512i bits = _mm512_srli_epi32(_mm512_shuffle_epi8(_mm512_set1_epi32(four), places), 1);
      // see e8m0()
      const __m512i from_one = _mm512_sub_epi32(bits, _mm512_set1_epi32(1 << 23));
      const __mmask16 ends = _mm512_cmpgt_epu32_mask(from_one, _mm512_set1_epi32(253 << 23));
      return _mm512_castsi512_ps(_mm512_mask_or_epi32(bits, ends, bits, _mm512_set1_epi32(1 << 22)));
    } else {
      int64_t four;
      std::memcpy(&four, from, sizeof four);
      // a bfloat16 is the upper half of a float32
      const __m512i places = of_groups(0x01008080, 0x03028080, 0x05048080, 0x07068080);
      return _mm512_castsi512_ps(_mm512_shuffle_epi8(_mm512_set1_epi64(four), places));
    }
  }

  // Unsigned integers that stand for the codes: those of E2m1 are twice their values, plus 12.
  template <class Code>
  static Codes unpack(const unsigned char* from) {
    const __m512i both = _mm512_loadu_si512(from), mask = _mm512_set1_epi8(15);
    const __m512i even = _mm512_and_si512(both, mask), odd = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
    if constexpr (std::is_same_v<Code, E2m1>) {
      const __m512i values = _mm512_broadcast_i32x4(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
      return {_mm512_shuffle_epi8(values, even), _mm512_shuffle_epi8(values, odd)};
    } else {
      return {even, odd};
    }
  }

  // Writes the digits of 128 inputs, for codes that count from `zero`.
  static void write(const Bf16* x, int zero, Block& to) {
    for (int64_t part = 0; part < 4; ++part) write_part(x + part * 32, part, to);
    write_offset(zero, to);
  }

 private:
  static __m512i of_groups(int a, int b, int c, int d) {
    return _mm512_setr_epi32(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d);
  }

  static void write_part(const Bf16* x, int64_t part, Block& to) {
    const __m512i pairs = _mm512_loadu_si512(x);
    const Vector even = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    const Vector odd = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u))));
    const DigitScale scale = digit_scale(_mm512_reduce_max_epu32(larger(larger(_mm512_setzero_si512(), even), odd)));
    const Vector inverse = _mm512_set1_ps(scale.inverse);
    write_digits(_mm512_mul_ps(even, inverse), to.high[0] + part * 16, to.low[0] + part * 16);
    write_digits(_mm512_mul_ps(odd, inverse), to.high[1] + part * 16, to.low[1] + part * 16);
    _mm_store_ps(to.scale + part * 4, _mm_set1_ps(scale.scale));
  }
};

// 8-bit integers, as they lie. All 128 inputs have one scale, and belong to one group of weights.
struct Digits512Bytes : Digits512Base {
  static constexpr bool takes_small_groups = false;
  static constexpr int64_t fewest_rows = 1, most_rows = 10;
  template <class Code>
  static constexpr int stored_scale = -1;

  template <class Code>
  static Codes unpack(const unsigned char* from) {
    const __m512i first = _mm512_loadu_si512(from), second = _mm512_loadu_si512(from + 64);
    if constexpr (std::is_same_v<Code, Uint8>) return {first, second};
    const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
    return {_mm512_xor_si512(first, sign), _mm512_xor_si512(second, sign)};
  }

  // Writes the digits of 128 inputs, for codes that count from `zero`.
  static void write(const Bf16* x, int zero, Block& to) {
    Vector values[8];
    __m512i largest = _mm512_setzero_si512();
    for (int64_t i = 0; i < 8; ++i) {
      const __m256i stored = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i * 16));
      values[i] = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(stored), 16));
      largest = larger(largest, values[i]);
    }
    const DigitScale scale = digit_scale(_mm512_reduce_max_epu32(largest));
    const Vector inverse = _mm512_set1_ps(scale.inverse);
    for (int64_t i = 0; i < 8; ++i) {
      const int64_t place = i % 4 * 16;
      write_digits(_mm512_mul_ps(values[i], inverse), to.high[i / 4] + place, to.low[i / 4] + place);
    }
    _mm512_store_ps(to.scale, _mm512_set1_ps(scale.scale));
    write_offset(zero, to);
  }
};

}  // namespace
}  // namespace fiddler
