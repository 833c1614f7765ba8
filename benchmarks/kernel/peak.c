// The peak of the vector units: independent multiply-adds on registers, without memory. Built by peak.py.
#include <immintrin.h>
#include <stdint.h>

enum { ACCUMULATORS = 12 };  // more than latency times units; with the factors, no more than AVX2 has registers

// every loop over the accumulators is unrolled, so that they stay in registers
#define EACH _Pragma("GCC unroll 12") for (int i = 0; i < ACCUMULATORS; ++i)
#define LOOP(VECTOR, STEP, ZERO)             \
  VECTOR sums[ACCUMULATORS];                 \
  EACH sums[i] = ZERO;                       \
  for (int64_t n = 0; n < steps; ++n) {      \
    EACH {                                   \
      sums[i] = STEP;                        \
      __asm__ volatile("" : "+v"(sums[i]));  \
    }                                        \
  }                                          \
  float total = 0;                           \
  EACH total += sums[i][0];                  \
  return total;

__attribute__((target("avx2,fma"))) float fma_avx2(int64_t steps) {
  const __m256 a = _mm256_set1_ps(1e-3f), b = _mm256_set1_ps(0.5f);
  LOOP(__m256, _mm256_fmadd_ps(a, b, sums[i]), _mm256_setzero_ps())
}

__attribute__((target("avx512f"))) float fma_avx512(int64_t steps) {
  const __m512 a = _mm512_set1_ps(1e-3f), b = _mm512_set1_ps(0.5f);
  LOOP(__m512, _mm512_fmadd_ps(a, b, sums[i]), _mm512_setzero_ps())
}

__attribute__((target("avx512f,avx512bf16"))) float dot_avx512_bf16(int64_t steps) {
  const __m512bh a = (__m512bh)_mm512_set1_epi16(0x3f00), b = (__m512bh)_mm512_set1_epi16(0x3a00);
  LOOP(__m512, _mm512_dpbf16_ps(sums[i], a, b), _mm512_setzero_ps())
}

// Four tiles of sums, as in a product of two by two tiles. The tiles are 0, which takes as long as any value.
__attribute__((target("amx-tile,amx-bf16"))) float tiles_amx_bf16(int64_t steps) {
  static const struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } layout __attribute__((aligned(64))) = {
      1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
  _tile_loadconfig(&layout);
  for (int64_t n = 0; n < steps; ++n) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 5, 6);
    _tile_dpbf16ps(2, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return 0;
}
