// AVX2: hidden rows times e4m3, which AVX2 has no instruction for. The bits of an e4m3, moved to where a bfloat16 has its
// sign, exponent and mantissa, are the bfloat16 that is 2^-120 times as large; subnormal ones are subnormal there, too.
// So a byte is masked, and multiplied by 16 as part of its extension to 16 bits; the upper half of a float32 is a
// bfloat16. Hidden rows are multiplied by a power of two beforehand, so that no product is too small for float32, and
// sorted by even and odd inputs. A code that is not a number would become one: the largest code of each row tells.
#pragma once

#include <immintrin.h>

#include <array>
#include <vector>

#include "projections/codes.h"
#include "projections/rows.h"

namespace fiddler {
namespace {

struct Floats256 {
  using Vector = __m256;
  static constexpr int64_t inputs = 32;  // decoded at a time
  static constexpr int64_t most_rows = 24;  // hidden rows; decoding into the cache once is faster for more
  static constexpr int64_t most_rows_of_short_groups = 16;  // where every 32 inputs have a scale, which is one more product
  static constexpr int64_t segment = 4096;  // inputs whose scales are decoded at a time

  static bool suits(const Coding& coding, int64_t count, int64_t length) {
    const bool fits_groups = coding.group_inputs % inputs == 0 || coding.group_inputs >= length;
    const int64_t rows = coding.group_inputs == inputs ? most_rows_of_short_groups : most_rows;
    return count <= rows && length % inputs == 0 && fits_groups;
  }

  // Outputs [begin, end) of one or two matrices, into block.results[m * block.pitch + output - begin].
  static void project(const Matrix* matrices, const Block* blocks, int num_matrices, int64_t begin, int64_t end,
                      const float* const* x, int64_t count, int64_t length, uint64_t message) {
    const Row* rows[most_rows];
    for (int64_t m = 0; m < count; ++m) rows[m] = &prepared(x[m], length, message);
    if (count <= 2) {
      stream<4, 2>(matrices, blocks, num_matrices, begin, end, rows, count, length);
    } else {
      stream<2, 4>(matrices, blocks, num_matrices, begin, end, rows, count, length);
    }
  }

 private:
  // A hidden row in the order in which codes are decoded, times a power of two that `factor` makes up for, together with
  // the bias of the codes' exponents.
  struct Row {
    uint64_t message = 0, used = 0;
    const float* x = nullptr;
    int64_t length = 0;
    float factor = 0;
    std::vector<float> values;
  };

  // Kept for the message, since each of its tasks needs them.
  static const Row& prepared(const float* x, int64_t length, uint64_t message) {
    thread_local std::array<Row, most_rows + 8> rows;
    thread_local uint64_t uses = 0;
    ++uses;
    Row* oldest = rows.data();
    for (Row& row : rows) {
      if (row.message == message && row.x == x && row.length == length) {
        row.used = uses;
        return row;
      }
      if (row.used < oldest->used) oldest = &row;
    }
    oldest->message = 0;  // if there is no memory
    if (static_cast<int64_t>(oldest->values.size()) < length) oldest->values.resize(static_cast<size_t>(length));
    const int power = power_for(x, length);
    const auto power_of_two = [](int exponent) { return std::bit_cast<float>(static_cast<uint32_t>(exponent + 127) << 23); };
    const Vector scale = _mm256_set1_ps(power_of_two(power));
    for (int64_t i = 0; i < length; i += inputs) sort(x + i, scale, oldest->values.data() + i);
    oldest->factor = power_of_two(120 - power);
    oldest->message = message;
    oldest->used = uses;
    oldest->x = x;
    oldest->length = length;
    return *oldest;
  }

  // Which power of two a row is multiplied with: its largest value becomes about 2^118, so that products with codes, which
  // are up to 2^-111, are normal numbers.
  static int power_for(const float* x, int64_t length) {
    __m256i largest = _mm256_setzero_si256();
    for (int64_t i = 0; i < length; i += 8) {
      const __m256i bits = _mm256_and_si256(load(x + i), _mm256_set1_epi32(0x7fffffff));
      largest = _mm256_max_epi32(largest, bits);
    }
    alignas(32) int32_t lane[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lane), largest);
    for (int i = 1; i < 8; ++i) lane[0] = lane[0] < lane[i] ? lane[i] : lane[0];
    const int exponent = lane[0] >> 23;
    if (exponent == 255) return 0;  // infinite, or not a number, and so are results
    const int power = 118 + 127 - exponent;
    return power > 126 ? 126 : power < -7 ? -7 : power;  // of which 120 - power is a power of two, too
  }

  // 32 inputs in the order in which codes are decoded: the even ones 0 to 6 and 16 to 22, 8 to 14 and 24 to 30, then the odd ones.
  static void sort(const float* x, Vector scale, float* to) {
    Vector even[2], odd[2];
    for (int half = 0; half < 2; ++half) {
      const Vector first = _mm256_loadu_ps(x + half * 16), second = _mm256_loadu_ps(x + half * 16 + 8);
      even[half] = in_order(_mm256_shuffle_ps(first, second, 0x88));
      odd[half] = in_order(_mm256_shuffle_ps(first, second, 0xdd));
    }
    _mm256_storeu_ps(to, _mm256_mul_ps(_mm256_permute2f128_ps(even[0], even[1], 0x20), scale));
    _mm256_storeu_ps(to + 8, _mm256_mul_ps(_mm256_permute2f128_ps(even[0], even[1], 0x31), scale));
    _mm256_storeu_ps(to + 16, _mm256_mul_ps(_mm256_permute2f128_ps(odd[0], odd[1], 0x20), scale));
    _mm256_storeu_ps(to + 24, _mm256_mul_ps(_mm256_permute2f128_ps(odd[0], odd[1], 0x31), scale));
  }

  static Vector in_order(Vector mixed) { return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(mixed), 0xd8)); }

  static __m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

  // The bfloat16s of the even ones of 32 codes, or of the odd ones, 2^-120 times as large: an unsigned byte times a signed
  // one is 16 times the code, with its sign extended.
  template <int Odd>
  static __m256i decode(__m256i codes) {
    const __m256i times = _mm256_maddubs_epi16(_mm256_set1_epi16(Odd ? 0x1000 : 0x0010), codes);
    return _mm256_and_si256(times, _mm256_set1_epi16(static_cast<short>(0x87f0)));
  }

  // Of sixteen of them, those at 0 to 3 and 8 to 11, or the others.
  static Vector widen(__m256i half, int which) {
    const __m256i zero = _mm256_setzero_si256();
    return _mm256_castsi256_ps(which ? _mm256_unpackhi_epi16(zero, half) : _mm256_unpacklo_epi16(zero, half));
  }

  static bool has_nan(const unsigned char* codes, int64_t length) {
    bool found = false;
    for (int64_t i = 0; i < length; ++i) found |= (codes[i] & 0x7f) == 0x7f;
    return found;
  }

  // One output of each of R weight rows for M hidden rows.
  template <int R, int M>
  static void block(const Matrix* const* matrices, const int64_t* outputs, const Row* const* x, int64_t length,
                    float* const* results, int64_t pitch) {
    constexpr int chains = M == 1 ? 2 : 1;  // of sums that do not wait for each other
    alignas(64) float scales[R][segment / inputs + 1];
    const unsigned char* codes[R];
    Vector total[R][M];
    const float* values[M];
    for (int m = 0; m < M; ++m) values[m] = x[m]->values.data();
    __m256i largest = _mm256_setzero_si256();
    const int64_t group_inputs = smaller(matrices[0]->coding.group_inputs, length);
    for (int r = 0; r < R; ++r) codes[r] = matrices[r]->weights + outputs[r] * matrices[r]->out_stride;
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) total[r][m] = _mm256_setzero_ps();
    }
    for (int64_t first = 0; first < length; first += segment) {
      const int64_t last = smaller(first + segment, length), group = first / group_inputs;
      const int64_t num_groups = (last - 1) / group_inputs - group + 1;
      for (int r = 0; r < R; ++r) load_scales(matrices[r]->coding, outputs[r], group, num_groups, 1.0f, scales[r]);
      int64_t i = first;
      for (int64_t g = 0; g < num_groups; ++g) {
        const int64_t end = smaller((group + g + 1) * group_inputs, last);
        Vector sums[R][M][chains];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
          for (int m = 0; m < M; ++m) {
#pragma GCC unroll 2
            for (int c = 0; c < chains; ++c) sums[r][m][c] = _mm256_setzero_ps();
          }
        }
        for (; i < end; i += inputs) {
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) {
            prefetch(codes[r] + i + prefetch_bytes);
            const __m256i stored = load(codes[r] + i);
            largest = _mm256_max_epu8(largest, _mm256_or_si256(stored, _mm256_set1_epi8(-128)));
            const __m256i halves[2] = {decode<0>(stored), decode<1>(stored)};
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
              const Vector weights = widen(halves[j / 2], j % 2);
#pragma GCC unroll 8
              for (int m = 0; m < M; ++m) {
                Vector& sum = sums[r][m][j % chains];
                sum = _mm256_fmadd_ps(weights, _mm256_loadu_ps(values[m] + i + j * 8), sum);
              }
            }
          }
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          const Vector scale = _mm256_set1_ps(scales[r][g]);
#pragma GCC unroll 8
          for (int m = 0; m < M; ++m) {
            Vector sum = sums[r][m][0];
            if constexpr (chains == 2) sum = _mm256_add_ps(sum, sums[r][m][1]);
            total[r][m] = _mm256_fmadd_ps(sum, scale, total[r][m]);
          }
        }
      }
    }
    const bool any_nan = _mm256_movemask_epi8(_mm256_cmpeq_epi8(largest, _mm256_set1_epi8(-1))) != 0;
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const bool is_nan = any_nan && has_nan(codes[r], length);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const float sum = Digits256::sum(total[r][m]) * x[m]->factor;
        results[r][m * pitch] = is_nan ? std::bit_cast<float>(0x7fc00000u) : sum;
      }
    }
  }

  template <int R, int M>
  static void some(const Matrix* const* matrices, const int64_t* outputs, const Row* const* x, int64_t count,
                   int64_t length, float* const* results, int64_t pitch) {
    if (count >= M) {
      block<R, M>(matrices, outputs, x, length, results, pitch);
    } else if constexpr (M > 1) {
      some<R, M - 1>(matrices, outputs, x, count, length, results, pitch);
    }
  }

  // As R streams from places far apart: see project_codes.
  template <int R, int M>
  static void stream(const Matrix* matrices, const Block* blocks, int num_matrices, int64_t begin, int64_t end,
                     const Row* const* x, int64_t count, int64_t length) {
    const int64_t parts = R / num_matrices, part = (end - begin) / parts, pitch = blocks[0].pitch;
    const int64_t times = (count + M - 1) / M;
    for (int64_t n = 0; n < part; ++n) {
      const Matrix* rows[R];
      int64_t outputs[R];
      for (int r = 0; r < R; ++r) {
        rows[r] = &matrices[r % num_matrices];
        outputs[r] = begin + r / num_matrices * part + n;
      }
      for (int64_t time = 0; time < times; ++time) {
        const int64_t first = count * time / times, last = count * (time + 1) / times;
        float* results[R];
        for (int r = 0; r < R; ++r) results[r] = blocks[r % num_matrices].results + first * pitch + outputs[r] - begin;
        some<R, M>(rows, outputs, x + first, last - first, length, results, pitch);
      }
    }
    if constexpr (R > 1) {
      const int64_t done = part * parts;
      if (begin + done == end) return;
      Block rest[2];
      for (int i = 0; i < num_matrices; ++i) rest[i] = {blocks[i].results + done, pitch};
      if (num_matrices == 2) {
        stream<2, M>(matrices, rest, 2, begin + done, end, x, count, length);
      } else {
        stream<1, M>(matrices, rest, 1, begin + done, end, x, count, length);
      }
    }
  }
};

}  // namespace
}  // namespace fiddler
