// AVX2: 4-bit codes multiplied with the two digits of hidden rows, as in digits512.h with half as many at a time.
#pragma once

#include <immintrin.h>

#include <type_traits>

#include "projections/digits.h"

namespace fiddler {
namespace {

struct Digits256 {
  using Vector = __m256;
  static constexpr int64_t inputs = 64;  // of a block
  static constexpr int64_t lanes = 8;
  static constexpr bool takes_small_groups = true;
  static constexpr int64_t fewest_rows = 1, most_rows = 16;  // hidden rows for which this is the fastest way
  static constexpr int64_t rows_at_a_time = 2;
  // The kind of scales that spread_stored() reads; -1 if none.
  template <class Code>
  static constexpr int stored_scale = std::is_same_v<Code, E2m1> ? -1 : FIDDLER_SCALE_BFLOAT16;

  // The scales of two groups, each in the four lanes of its group.
  template <class Code>
  static Vector spread_stored(const unsigned char* from) {
    int32_t two;
    std::memcpy(&two, from, sizeof two);
    // a bfloat16 is the upper half of a float32
    const __m256i places = _mm256_setr_epi32(0x01008080, 0x01008080, 0x01008080, 0x01008080, 0x03028080, 0x03028080,
                                             0x03028080, 0x03028080);
    return _mm256_castsi256_ps(_mm256_shuffle_epi8(_mm256_set1_epi32(two), places));
  }

  static Vector zero() { return _mm256_setzero_ps(); }
  static Vector multiply(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
  static Vector multiply_add(Vector sum, Vector a, Vector b) { return _mm256_fmadd_ps(a, b, sum); }
  static float sum(Vector value) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }

  // 64 inputs x as (256 * high + low) * scale, with a scale for 32 of them.
  struct alignas(32) Block {
    signed char high_even[32], high_odd[32], low_even[32], low_odd[32];
    int32_t offset[lanes];  // what makes of a lane's sum of products one with codes that count from their zero
    float scale[lanes];     // of each lane
  };

  struct Codes {
    __m256i even, odd;
  };

  // Unsigned integers that stand for the codes: those of E2m1 are twice their values, plus 12.
  template <class Code>
  static Codes unpack(const unsigned char* from) {
    const __m256i both = load(from), mask = _mm256_set1_epi8(15);
    const __m256i even = _mm256_and_si256(both, mask), odd = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
    if constexpr (std::is_same_v<Code, E2m1>) {
      const __m256i values =
          _mm256_broadcastsi128_si256(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
      return {_mm256_shuffle_epi8(values, even), _mm256_shuffle_epi8(values, odd)};
    } else {
      return {even, odd};
    }
  }

  // Codes that are larger in each lane by what spread_shifts() gave.
  static Codes shifted(const Codes& codes, __m256i shifts) {
    return {_mm256_add_epi8(codes.even, shifts), _mm256_add_epi8(codes.odd, shifts)};
  }

  // Each lane's sum of products with R weight rows, exactly, before scales. Pairs of products fit in 16 bits, since codes
  // are at most 30.
  template <int R>
  static void dot(const Codes (&codes)[R], const Block& x, Vector (&products)[R]) {
    const __m256i high_even = load(x.high_even), high_odd = load(x.high_odd);
    const __m256i low_even = load(x.low_even), low_odd = load(x.low_odd), offset = load(x.offset);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const __m256i high = _mm256_add_epi16(_mm256_maddubs_epi16(codes[r].even, high_even),
                                            _mm256_maddubs_epi16(codes[r].odd, high_odd));
      const __m256i low = _mm256_add_epi16(_mm256_maddubs_epi16(codes[r].even, low_even),
                                           _mm256_maddubs_epi16(codes[r].odd, low_odd));
      const __m256i sums = _mm256_add_epi32(_mm256_madd_epi16(high, _mm256_set1_epi16(256)),
                                            _mm256_madd_epi16(low, _mm256_set1_epi16(1)));
      products[r] = _mm256_cvtepi32_ps(_mm256_add_epi32(sums, offset));
    }
  }

  // Which of the scales from a block's first group on belongs to each lane.
  using Lanes = __m256i;
  static Lanes lanes_of_groups(int64_t group_inputs) {
    alignas(32) int32_t groups[lanes];
    for (int i = 0; i < lanes; ++i) groups[i] = static_cast<int32_t>(i * 8 / group_inputs);
    return load(groups);
  }
  static Vector spread(const float* scales, Lanes groups) {
    return _mm256_permutevar8x32_ps(_mm256_loadu_ps(scales), groups);
  }
  static __m256i spread_shifts(const uint32_t* shifts, Lanes groups) {
    return _mm256_permutevar8x32_epi32(load(shifts), groups);
  }
  static Vector scales(const Block& x) { return _mm256_load_ps(x.scale); }

  // Writes the digits of 64 inputs, for codes that count from `zero`.
  static void write(const float* x, int zero, Block& to) {
    for (int64_t part = 0; part < 2; ++part) write_part(x + part * 32, part, to);
    const __m256i ones = _mm256_set1_epi8(1);
    const Codes codes[1] = {{ones, ones}};
    Vector sums[1];
    _mm256_store_si256(reinterpret_cast<__m256i*>(to.offset), _mm256_setzero_si256());
    dot(codes, to, sums);
    const __m256i offset = _mm256_mullo_epi32(_mm256_cvtps_epi32(sums[0]), _mm256_set1_epi32(-zero));
    _mm256_store_si256(reinterpret_cast<__m256i*>(to.offset), offset);
  }

 private:
  static __m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

  // The digits of 32 inputs: integers of 15 bits and a sign, times a power of two.
  static void write_part(const float* x, int64_t part, Block& to) {
    __m256i largest = _mm256_setzero_si256();
    for (int64_t i = 0; i < 32; i += 8) {
      const __m256i bits = _mm256_and_si256(load(x + i), _mm256_set1_epi32(0x7fffffff));
      largest = _mm256_max_epu32(largest, bits);
    }
    alignas(32) uint32_t lane[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lane), largest);
    for (int i = 1; i < 8; ++i) lane[0] = lane[0] < lane[i] ? lane[i] : lane[0];
    const DigitScale scale = digit_scale(lane[0]);
    const Vector inverse = _mm256_set1_ps(scale.inverse);
    for (int64_t half = 0; half < 2; ++half) {
      const Vector first = _mm256_loadu_ps(x + half * 16), second = _mm256_loadu_ps(x + half * 16 + 8);
      const int64_t place = part * 16 + half * 8;
      write_digits(_mm256_mul_ps(alternate(first, second, 0x88), inverse), to.high_even + place, to.low_even + place);
      write_digits(_mm256_mul_ps(alternate(first, second, 0xdd), inverse), to.high_odd + place, to.low_odd + place);
    }
    _mm_storeu_ps(to.scale + part * 4, _mm_set1_ps(scale.scale));
  }

  // The even or the odd ones of 16 values, in order.
  template <int Which = 0>
  static Vector alternate(Vector first, Vector second, int which) {
    const Vector mixed = which == 0x88 ? _mm256_shuffle_ps(first, second, 0x88) : _mm256_shuffle_ps(first, second, 0xdd);
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(mixed), 0xd8));
  }

  static void write_digits(Vector values, signed char* high, signed char* low) {
    const __m256i integers = _mm256_min_epi32(_mm256_cvtps_epi32(values), _mm256_set1_epi32(largest_of_digits));
    const __m256i highs = _mm256_srai_epi32(_mm256_add_epi32(integers, _mm256_set1_epi32(128)), 8);
    store_bytes(highs, high);
    store_bytes(_mm256_sub_epi32(integers, _mm256_slli_epi32(highs, 8)), low);
  }

  // Eight integers of 8 bits.
  static void store_bytes(__m256i values, signed char* to) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(values, values), 0xd8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_castsi256_si128(words));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), bytes);
  }
};

}  // namespace
}  // namespace fiddler
