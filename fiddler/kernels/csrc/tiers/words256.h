// AVX2: few hidden rows times codes of 8 bits as products of integers of 16 bits. Both digits of digits.h together are
// such an integer, so that one instruction multiplies sixteen weights and adds pairs; sums of 128 inputs are exact.
#pragma once

#include <immintrin.h>

#include <type_traits>

#include "projections/digits.h"

namespace fiddler {
namespace {

struct Words256 {
  using Vector = __m256;
  static constexpr int64_t inputs = 128;  // of a block, which have a scale
  static constexpr int64_t most_rows = 24;
  static constexpr int rows_at_a_time = 3;  // whose sums with four weight rows fit in registers

  struct alignas(32) Block {
    int16_t words[inputs];
    float scale;
  };

  // Hidden rows for which this is the fastest way; subtracting zero points costs as much as a row.
  template <class Code>
  static constexpr int64_t fast_rows = std::is_same_v<Code, Int8> ? most_rows : 2;

  template <class Code>
  static bool suits(const Coding& coding, int64_t count, int64_t length) {
    const int64_t group = coding.group_inputs;
    const bool fits_groups = group >= length || (group % inputs == 0 && digits_segment % group == 0);
    return count <= fast_rows<Code> && length % inputs == 0 && fits_groups;
  }

  // Writes 128 inputs as integers of 15 bits and a sign, times a power of two.
  static void write(const float* x, int, Block& to) {
    __m256i largest = _mm256_setzero_si256();
    for (int64_t i = 0; i < inputs; i += 8) {
      const __m256i bits = _mm256_and_si256(load(x + i), _mm256_set1_epi32(0x7fffffff));
      largest = _mm256_max_epu32(largest, bits);
    }
    alignas(32) uint32_t lane[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lane), largest);
    for (int i = 1; i < 8; ++i) lane[0] = lane[0] < lane[i] ? lane[i] : lane[0];
    const DigitScale scale = digit_scale(lane[0]);
    const Vector inverse = _mm256_set1_ps(scale.inverse);
    const __m256i most = _mm256_set1_epi32(largest_of_digits);
    for (int64_t i = 0; i < inputs; i += 16) {
      const __m256i first = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), inverse));
      const __m256i second = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i + 8), inverse));
      const __m256i mixed = _mm256_packs_epi32(_mm256_min_epi32(first, most), _mm256_min_epi32(second, most));
      _mm256_store_si256(reinterpret_cast<__m256i*>(to.words + i), _mm256_permute4x64_epi64(mixed, 0xd8));
    }
    to.scale = scale.scale;
  }

  // Outputs [begin, end) of one or two matrices, into block.results[m * block.pitch + output - begin].
  template <class Code>
  static void project(const Matrix* matrices, const fiddler::Block* blocks, int num_matrices, int64_t begin, int64_t end,
                      const float* const* x, int64_t count, int64_t length, uint64_t message) {
    const Block* words[most_rows];
    for (int64_t m = 0; m < count; ++m) words[m] = digits_of<Words256>(x[m], length, 0, message);
    stream<Code, 4>(matrices, blocks, num_matrices, begin, end, words, count, length);
  }

 private:
  static __m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

  // Sixteen codes, less the zero point.
  template <class Code>
  static __m256i decode(const unsigned char* from, __m256i zero) {
    const __m128i stored = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    if constexpr (std::is_same_v<Code, Int8>) return _mm256_cvtepi8_epi16(stored);
    return _mm256_sub_epi16(_mm256_cvtepu8_epi16(stored), zero);
  }

  // One output of each of R weight rows for M hidden rows.
  template <class Code, int R, int M>
  static void block(const Matrix* const* matrices, const int64_t* outputs, const Block* const* x, int64_t length,
                    float* const* results, int64_t pitch) {
    alignas(64) float scales[R][digits_segment / inputs];
    const unsigned char* codes[R];
    Vector total[R][M];
    const int64_t group_inputs = smaller(matrices[0]->coding.group_inputs, length);
    const bool is_one_group = group_inputs == length;
    for (int r = 0; r < R; ++r) codes[r] = matrices[r]->weights + outputs[r] * matrices[r]->out_stride;
    for (int r = 0; r < R; ++r) {
      for (int m = 0; m < M; ++m) total[r][m] = _mm256_setzero_ps();
    }
    for (int64_t first = 0; first < length; first += digits_segment) {
      const int64_t last = smaller(first + digits_segment, length), first_group = is_one_group ? 0 : first / group_inputs;
      const int64_t num_groups = is_one_group ? 1 : (last - 1) / group_inputs - first_group + 1;
      for (int r = 0; r < R; ++r) load_scales(matrices[r]->coding, outputs[r], first_group, num_groups, 1.0f, scales[r]);
      int64_t i = first;
      for (int64_t g = 0; g < num_groups; ++g) {
        const int64_t end = is_one_group ? last : i + smaller(group_inputs, last - i);
        __m256i zeros[R];
        Vector of_group[R];
        for (int r = 0; r < R; ++r) {
          const int zero = zero_of<Code>(matrices[r]->coding, outputs[r], first_group + g);
          zeros[r] = _mm256_set1_epi16(static_cast<short>(zero));
          of_group[r] = _mm256_set1_ps(scales[r][g]);
        }
        for (; i < end; i += inputs) {
          __m256i sums[R][M];
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) {
            for (int64_t line = 0; line < inputs; line += 64) prefetch(codes[r] + i + line + prefetch_bytes);
#pragma GCC unroll 3
            for (int m = 0; m < M; ++m) sums[r][m] = _mm256_setzero_si256();
          }
#pragma GCC unroll 8
          for (int64_t j = 0; j < inputs; j += 16) {
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
              const __m256i weights = decode<Code>(codes[r] + i + j, zeros[r]);
#pragma GCC unroll 3
              for (int m = 0; m < M; ++m) {
                const __m256i words = load(x[m][i / inputs].words + j);
                sums[r][m] = _mm256_add_epi32(sums[r][m], _mm256_madd_epi16(weights, words));
              }
            }
          }
#pragma GCC unroll 3
          for (int m = 0; m < M; ++m) {
            const Vector scale = _mm256_set1_ps(x[m][i / inputs].scale);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
              const Vector both = _mm256_mul_ps(scale, of_group[r]);
              total[r][m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[r][m]), both, total[r][m]);
            }
          }
        }
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int m = 0; m < M; ++m) results[r][m * pitch] = Digits256::sum(total[r][m]);
    }
  }

  template <class Code, int R, int M>
  static void some(const Matrix* const* matrices, const int64_t* outputs, const Block* const* x, int64_t count,
                   int64_t length, float* const* results, int64_t pitch) {
    if (count >= M) {
      block<Code, R, M>(matrices, outputs, x, length, results, pitch);
    } else if constexpr (M > 1) {
      some<Code, R, M - 1>(matrices, outputs, x, count, length, results, pitch);
    }
  }

  // As R streams from places far apart: see project_codes.
  template <class Code, int R>
  static void stream(const Matrix* matrices, const fiddler::Block* blocks, int num_matrices, int64_t begin, int64_t end,
                     const Block* const* x, int64_t count, int64_t length) {
    const int64_t parts = R / num_matrices, part = (end - begin) / parts, pitch = blocks[0].pitch;
    const int64_t times = (count + rows_at_a_time - 1) / rows_at_a_time;
    for (int64_t n = 0; n < part; ++n) {
      const Matrix* rows[R];
      int64_t outputs[R];
      for (int r = 0; r < R; ++r) {
        rows[r] = &matrices[r % num_matrices];
        outputs[r] = begin + r / num_matrices * part + n;
      }
      for (int64_t time = 0; time < times; ++time) {
        const int64_t from = count * time / times, to = count * (time + 1) / times;
        float* results[R];
        for (int r = 0; r < R; ++r) results[r] = blocks[r % num_matrices].results + from * pitch + outputs[r] - begin;
        some<Code, R, rows_at_a_time>(rows, outputs, x + from, to - from, length, results, pitch);
      }
    }
    if constexpr (R > 1) {
      const int64_t done = part * parts;
      if (begin + done == end) return;
      fiddler::Block rest[2];
      for (int i = 0; i < num_matrices; ++i) rest[i] = {blocks[i].results + done, pitch};
      if (num_matrices == 2) {
        stream<Code, 2>(matrices, rest, 2, begin + done, end, x, count, length);
      } else {
        stream<Code, 1>(matrices, rest, 1, begin + done, end, x, count, length);
      }
    }
  }
};

}  // namespace
}  // namespace fiddler
