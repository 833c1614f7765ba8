// AVX-512 VNNI: 4-bit codes multiplied with the two digits of hidden rows. One vector of codes is 128 inputs: the 64 bytes'
// low halves are the even ones, their high halves the odd ones, and each lane of sums belongs to 8 of them.
#pragma once

#include <immintrin.h>

#include <type_traits>

#include "projections/digits.h"

namespace fiddler {
namespace {

struct Digits512 {
  using Vector = __m512;
  static constexpr int64_t inputs = 128;  // of a block
  static constexpr int64_t lanes = 16;
  static constexpr int64_t most_rows = 12;  // hidden rows up to which this is the fastest way
  static constexpr int64_t rows_at_a_time = 4;

  static Vector zero() { return _mm512_setzero_ps(); }
  static Vector multiply(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
  static Vector multiply_add(Vector sum, Vector a, Vector b) { return _mm512_fmadd_ps(a, b, sum); }
  static float sum(Vector value) { return _mm512_reduce_add_ps(value); }

  // 128 inputs x as (256 * high + low) * scale, with a scale for 32 of them.
  struct alignas(64) Block {
    signed char high_even[64], high_odd[64], low_even[64], low_odd[64];
    int32_t offset[16];  // what makes of a lane's sum of products one with codes that count from their zero
    float scale[16];     // of each lane
  };

  struct Codes {
    __m512i even, odd;
  };

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

  // Codes that are larger in each lane by what spread_shifts() gave.
  static Codes shifted(const Codes& codes, __m512i shifts) {
    return {_mm512_add_epi8(codes.even, shifts), _mm512_add_epi8(codes.odd, shifts)};
  }

  // Each lane's sum of products with R weight rows, exactly, before scales.
  template <int R>
  static void dot(const Codes (&codes)[R], const Block& x, Vector (&products)[R]) {
    __m512i sums[R];
    const __m512i high_even = _mm512_load_si512(x.high_even), high_odd = _mm512_load_si512(x.high_odd);
    const __m512i low_even = _mm512_load_si512(x.low_even), low_odd = _mm512_load_si512(x.low_odd);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      sums[r] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes[r].even, high_even);
      sums[r] = _mm512_slli_epi32(_mm512_dpbusd_epi32(sums[r], codes[r].odd, high_odd), 8);
      sums[r] = _mm512_add_epi32(sums[r], _mm512_load_si512(x.offset));
      sums[r] = _mm512_dpbusd_epi32(sums[r], codes[r].even, low_even);
      products[r] = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(sums[r], codes[r].odd, low_odd));
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

  // Writes the digits of 128 inputs, for codes that count from `zero`.
  template <class Operand>
  static void write(const Operand* x, int zero, Block& to) {
    for (int64_t part = 0; part < 4; ++part) write_part(x + part * 32, part, to);
    const __m512i ones = _mm512_set1_epi8(1);
    __m512i sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, _mm512_load_si512(to.high_even));
    sums = _mm512_slli_epi32(_mm512_dpbusd_epi32(sums, ones, _mm512_load_si512(to.high_odd)), 8);
    sums = _mm512_dpbusd_epi32(sums, ones, _mm512_load_si512(to.low_even));
    sums = _mm512_dpbusd_epi32(sums, ones, _mm512_load_si512(to.low_odd));
    _mm512_store_si512(to.offset, _mm512_mullo_epi32(sums, _mm512_set1_epi32(-zero)));
  }

 private:
  // Even and odd ones of 32 inputs.
  static void load(const Bf16* x, Vector& even, Vector& odd) {
    const __m512i pairs = _mm512_loadu_si512(x);
    even = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    odd = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u))));
  }
  static void load(const float* x, Vector& even, Vector& odd) {
    const Vector low = _mm512_loadu_ps(x), high = _mm512_loadu_ps(x + 16);
    const __m512i index = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    even = _mm512_permutex2var_ps(low, index, high);
    odd = _mm512_permutex2var_ps(low, _mm512_add_epi32(index, _mm512_set1_epi32(1)), high);
  }

  // The digits of 32 inputs: integers of 15 bits and a sign, times a power of two.
  template <class Operand>
  static void write_part(const Operand* x, int64_t part, Block& to) {
    Vector even, odd;
    load(x, even, odd);
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    const __m512i largest = _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(even), magnitude),
                                             _mm512_and_si512(_mm512_castps_si512(odd), magnitude));
    const DigitScale scale = digit_scale(_mm512_reduce_max_epu32(largest));
    const Vector inverse = _mm512_set1_ps(scale.inverse);
    write_digits(_mm512_mul_ps(even, inverse), to.high_even + part * 16, to.low_even + part * 16);
    write_digits(_mm512_mul_ps(odd, inverse), to.high_odd + part * 16, to.low_odd + part * 16);
    _mm_store_ps(to.scale + part * 4, _mm_set1_ps(scale.scale));
  }

  static void write_digits(Vector values, signed char* high, signed char* low) {
    const __m512i integers = _mm512_min_epi32(_mm512_cvtps_epi32(values), _mm512_set1_epi32(largest_of_digits));
    const __m512i highs = _mm512_srai_epi32(_mm512_add_epi32(integers, _mm512_set1_epi32(128)), 8);
    const __m512i lows = _mm512_sub_epi32(integers, _mm512_slli_epi32(highs, 8));
    _mm_store_si128(reinterpret_cast<__m128i*>(high), _mm512_cvtepi32_epi8(highs));
    _mm_store_si128(reinterpret_cast<__m128i*>(low), _mm512_cvtepi32_epi8(lows));
  }
};

}  // namespace
}  // namespace fiddler
