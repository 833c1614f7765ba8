// AVX2 with FMA and F16C: as AVX-512, with half the lanes and half the registers.
#pragma once

#include <immintrin.h>

#include "formats.h"

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
  static constexpr int64_t min_panel_rows = 13;  // fewer are computed without packing
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

  static float sum(Vector value) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
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

}  // namespace
}  // namespace fiddler
