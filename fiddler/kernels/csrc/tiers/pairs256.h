// AVX2: panels of bfloat16. Pairs of inputs are transposed as units of 32 bits, and become float32 when they are stored:
// one shift gives the first of each pair, one mask the second. That takes half as many shuffles as transposing float32.
#pragma once

#include <immintrin.h>

#include "projections/panels.h"

namespace fiddler {
namespace {

struct Pairs256 {
  static constexpr int64_t fewest_rows = 25;  // hidden rows; fewer are multiplied while weights are read

  // As project_panel: outputs [begin, end) of `count` hidden rows, in results[m * panel_outputs + output - begin].
  template <class T>
  static void project(const Matrix& matrix, float* results, int64_t begin, int64_t end, const float* const* x,
                      int64_t count, int64_t length, Scratch& scratch) {
    constexpr int M = T::accumulators / T::panel_vectors;
    static_assert(panel_width<T> == width);
    const int64_t groups = (count + M - 1) / M;
    for (int64_t n = begin; n < end; n += width) {
      for (int64_t first = 0; first < length; first += inputs) {
        const int64_t last = smaller(first + inputs, length);
        pack(matrix, n, smaller(n + width, end), first, last, length, scratch.panel);
        for (int64_t group = 0; group < groups; ++group) {
          const int64_t row = count * group / groups, next = count * (group + 1) / groups;
          multiply_some<T, M>(next - row, scratch.panel, x + row, first, last - first,
                              results + row * panel_outputs + n - begin, first > 0);
        }
      }
    }
  }

 private:
  static constexpr int64_t width = 16;    // outputs of a panel
  static constexpr int64_t inputs = 256;  // of a panel: 16 KiB, half of the first-level cache

  static __m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

  // Packs outputs [begin, end) x inputs [first, last) as panel[input][output]; outputs beyond `end` are the last one again.
  // What is packed next, which is further on in the same rows or in those of the next panel, is prefetched.
  static void pack(const Matrix& matrix, int64_t begin, int64_t end, int64_t first, int64_t last, int64_t length,
                   float* panel) {
    const auto* weights = reinterpret_cast<const Bf16*>(matrix.weights);
    const int64_t ahead = last < length ? inputs : width * matrix.out_stride - first;
    for (int64_t half = 0; half < width; half += 8) {
      const Bf16* rows[8];
      for (int64_t i = 0; i < 8; ++i) rows[i] = weights + smaller(begin + half + i, end - 1) * matrix.out_stride;
      for (int64_t k = first; k < last; k += 16) {
        __m256i r[8];
        if (last - k >= 16) {
#pragma GCC unroll 8
          for (int i = 0; i < 8; ++i) r[i] = load(rows[i] + k);
          if (k % 32 == 0) {
#pragma GCC unroll 8
            for (int i = 0; i < 8; ++i) prefetch(rows[i] + k + ahead);
          }
        } else {
          for (int i = 0; i < 8; ++i) {
            Bf16 part[16] = {};
            std::memcpy(part, rows[i] + k, static_cast<size_t>(last - k) * sizeof(Bf16));
            r[i] = load(part);
          }
        }
        transpose(r);
        float* to = panel + (k - first) * width + half;
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i, to += 2 * width) {
          _mm256_store_ps(to, _mm256_castsi256_ps(_mm256_slli_epi32(r[i], 16)));
          const __m256i second = _mm256_and_si256(r[i], _mm256_set1_epi32(static_cast<int>(0xffff0000)));
          _mm256_store_ps(to + width, _mm256_castsi256_ps(second));
        }
      }
    }
  }

  // Eight rows of eight units of 32 bits.
  static void transpose(__m256i (&r)[8]) {
    __m256i pairs[8], fours[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
      pairs[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
      pairs[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
      fours[i] = _mm256_unpacklo_epi64(pairs[i], pairs[i + 2]);
      fours[i + 1] = _mm256_unpackhi_epi64(pairs[i], pairs[i + 2]);
      fours[i + 2] = _mm256_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
      fours[i + 3] = _mm256_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      r[i] = _mm256_permute2x128_si256(fours[i], fours[i + 4], 0x20);
      r[i + 4] = _mm256_permute2x128_si256(fours[i], fours[i + 4], 0x31);
    }
  }
};

}  // namespace
}  // namespace fiddler
