// Few hidden rows times integer codes, by integer products: an input is written as two digits of 8 bits, (256 * high + low)
// * scale, with a scale for 32 or 128 inputs, so that a sum of products is exact before scales. The scale is a power of
// two. That loses less than a bfloat16's own rounding: inputs of 8 bits are exact down to 1/128 of the largest of them.
#pragma once

#include <array>
#include <type_traits>
#include <vector>

#include "projections/digit_scales.h"
#include "projections/rows.h"

namespace fiddler {
namespace {

constexpr int largest_of_digits = 127 * 256 + 127;

struct DigitScale {
  float scale;
  float inverse;
};

// For inputs of which the largest magnitude has these bits. Not a number if one of the inputs is none, or infinite.
inline DigitScale digit_scale(uint32_t largest) {
  constexpr uint32_t bias = 127, bits = 14;  // after the leading one
  uint32_t exponent = largest >> 23;
  if (exponent == 255) return {std::bit_cast<float>(0x7fc00000u), 0.0f};
  if (exponent < bits + 1) exponent = bits + 1;  // the scale is a normal number, and what is smaller becomes 0
  return {std::bit_cast<float>((exponent - bits) << 23), std::bit_cast<float>((2 * bias + bits - exponent) << 23)};
}

// A hidden row's digits. They are kept for the message, since each of its tasks needs them.
template <class Digits, class Operand>
const typename Digits::Block* digits_of(const Operand* x, int64_t length, int zero, uint64_t message) {
  using Block = typename Digits::Block;
  struct Row {
    uint64_t message = 0, used = 0;
    const void* x = nullptr;
    int64_t length = 0;
    int zero = 0;
    std::vector<Block> blocks;
  };
  thread_local std::array<Row, 32> rows;  // more than are multiplied at a time
  thread_local uint64_t uses = 0;
  ++uses;
  Row* oldest = rows.data();
  for (Row& row : rows) {
    if (row.message == message && row.x == x && row.length == length && row.zero == zero) {
      row.used = uses;
      return row.blocks.data();
    }
    if (row.used < oldest->used) oldest = &row;
  }
  oldest->message = 0;  // if there is no memory
  const int64_t whole = length / Digits::inputs, rest = length % Digits::inputs;
  if (static_cast<int64_t>(oldest->blocks.size()) < whole + 1) oldest->blocks.resize(static_cast<size_t>(whole + 1));
  Block* to = oldest->blocks.data();
  for (int64_t i = 0; i < whole; ++i) Digits::write(x + i * Digits::inputs, zero, to[i]);
  if (rest) {
    Operand part[Digits::inputs] = {};
    std::memcpy(part, x + whole * Digits::inputs, static_cast<size_t>(rest) * sizeof(Operand));
    Digits::write(part, zero, to[whole]);
  }
  oldest->message = message;
  oldest->used = uses;
  oldest->x = x;
  oldest->length = length;
  oldest->zero = zero;
  return to;
}

// A row of a coded matrix.
template <class Digits, class Scales, bool HasZeros>
struct DigitsRow {
  const unsigned char* codes;
  const Coding* coding;
  int64_t output;
  Scales scales;
  std::conditional_t<HasZeros, Shifts<Digits>, NoShifts> shifts;

  void begin(const Matrix& matrix, int64_t number) {
    codes = matrix.weights + number * matrix.out_stride;
    coding = &matrix.coding;
    output = number;
    scales.begin_row(matrix.coding, number);
  }
  template <class Code>
  void begin_segment(int64_t first_group, int64_t num_groups) {
    scales.begin_segment(first_group, num_groups);
    if constexpr (HasZeros) shifts.template load<Code>(*coding, output, first_group, num_groups);
  }
};

// One output of each of R weight rows for M hidden rows.
template <class Digits, class Code, class Row, bool HasZeros, int R, int M>
void digits_block(Row (&rows)[R], const Groups& groups, const typename Digits::Block* const* x, int64_t length,
                  float* const* results, int64_t pitch) {
  using Vector = typename Digits::Vector;
  constexpr int64_t bits = code_bits<Code>, block_bytes = Digits::inputs * bits / 8;
  const typename Digits::Lanes lanes = Digits::lanes_of_groups(Digits::inputs / groups.in_block);
  Vector total[R][M];
  for (int r = 0; r < R; ++r) {
    for (int m = 0; m < M; ++m) total[r][m] = Digits::zero();
  }
  const auto add = [&](const unsigned char* const* codes, int64_t block, int64_t group) {
    typename Digits::Codes unpacked[R];
    Vector scales[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      unpacked[r] = Digits::template unpack<Code>(codes[r]);
      if constexpr (HasZeros) unpacked[r] = Digits::shifted(unpacked[r], rows[r].shifts.of_block(group, lanes));
      scales[r] = rows[r].scales.of_block(group, lanes);
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const auto& digits = x[m][block];
      Vector products[R];
      Digits::dot(unpacked, digits, products);
      const Vector scale = Digits::scales(digits);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        total[r][m] = Digits::multiply_add(total[r][m], products[r], Digits::multiply(scales[r], scale));
      }
    }
  };
  int64_t first_group = 0;
  for (int64_t first = 0; first < length; first += digits_segment) {
    const int64_t last = smaller(first + digits_segment, length);
    const int64_t num_groups = last < length ? groups.in_segment : groups.in_last_segment;
    for (int r = 0; r < R; ++r) rows[r].template begin_segment<Code>(first_group, num_groups);
    if (!groups.cover_segments) first_group += num_groups;
    const unsigned char* codes[R];
    for (int r = 0; r < R; ++r) codes[r] = rows[r].codes + first * bits / 8;
    int64_t block = first / Digits::inputs, group = 0, in_group = 0;
    for (int64_t i = first; i + Digits::inputs <= last; i += Digits::inputs, ++block) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
        for (int64_t line = 0; line < block_bytes; line += 64) prefetch(codes[r] + line + prefetch_bytes);
      }
      add(codes, block, group);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) codes[r] += block_bytes;
      if (!groups.cover_segments && ++in_group == groups.blocks_each) {
        in_group = 0;
        group += groups.in_block;
      }
    }
    if (const int64_t rest = (last - first) % Digits::inputs) {
      unsigned char parts[R][block_bytes] = {};
      for (int r = 0; r < R; ++r) {
        std::memcpy(parts[r], codes[r], static_cast<size_t>((rest * bits + 7) / 8));
        codes[r] = parts[r];
      }
      add(codes, block, group);
    }
  }
  for (int r = 0; r < R; ++r) {
    const float factor = digits_factor<Code> * rows[r].scales.left_out();
    for (int m = 0; m < M; ++m) results[r][m * pitch] = Digits::sum(total[r][m]) * factor;
  }
}

// As many hidden rows as there are, M at a time: a weight row stays in the first-level cache.
template <class Digits, class Code, class Row, bool HasZeros, int R, int M>
void digits_some(Row (&rows)[R], const Groups& groups, const typename Digits::Block* const* x, int64_t count,
                 int64_t length, float* const* results, int64_t pitch) {
  float* to[R];
  for (int r = 0; r < R; ++r) to[r] = results[r];
  for (; count >= M; count -= M, x += M) {
    digits_block<Digits, Code, Row, HasZeros, R, M>(rows, groups, x, length, to, pitch);
    for (int r = 0; r < R; ++r) to[r] += M * pitch;
  }
  if constexpr (M > 1) {
    if (count > 0) digits_some<Digits, Code, Row, HasZeros, R, M - 1>(rows, groups, x, count, length, to, pitch);
  }
}

// Outputs [begin, end) of one or two matrices as R streams from places far apart: see project_codes.
template <class Digits, class Code, class Scales, bool HasZeros, int R>
void project_digits(const Matrix* matrices, const Block* blocks, int num_matrices, int64_t begin, int64_t end,
                    const Groups& groups, const typename Digits::Block* const* x, int64_t count, int64_t length) {
  using Row = DigitsRow<Digits, Scales, HasZeros>;
  const int64_t parts = R / num_matrices, part = (end - begin) / parts, pitch = blocks[0].pitch;
  Row rows[R];
  for (int64_t n = 0; n < part; ++n) {
    float* results[R];
    for (int r = 0; r < R; ++r) {
      const int64_t offset = r / num_matrices * part + n;
      rows[r].begin(matrices[r % num_matrices], begin + offset);
      results[r] = blocks[r % num_matrices].results + offset;
    }
    digits_some<Digits, Code, Row, HasZeros, R, Digits::rows_at_a_time>(rows, groups, x, count, length, results, pitch);
  }
  if constexpr (R > 1) {
    const int64_t done = part * parts;
    if (begin + done == end) return;
    Block rest[2];
    for (int i = 0; i < num_matrices; ++i) rest[i] = {blocks[i].results + done, pitch};
    const auto project = num_matrices == 2 ? project_digits<Digits, Code, Scales, HasZeros, 2>
                                           : project_digits<Digits, Code, Scales, HasZeros, 1>;
    project(matrices, rest, num_matrices, begin + done, end, groups, x, count, length);
  }
}

template <class Digits, class Code, bool HasZeros, class Operand>
void project_with_digits(const Matrix* matrices, const Block* blocks, int num_matrices, int64_t begin, int64_t end,
                         const Operand* const* x, int64_t count, int64_t length, uint64_t message) {
  const typename Digits::Block* digits[Digits::most_rows];
  for (int64_t m = 0; m < count; ++m) digits[m] = digits_of<Digits>(x[m], length, digits_zero<Code, HasZeros>, message);
  const Groups groups(smaller(matrices[0].coding.group_inputs, length), length, Digits::inputs);
  auto project = project_digits<Digits, Code, DecodedScales<Digits>, HasZeros, 4>;
  if constexpr (!HasZeros && Digits::template stored_scale<Code> >= 0) {
    using Stored = StoredScales<Digits, Code>;
    if (Stored::suits(matrices[0].coding, length)) project = project_digits<Digits, Code, Stored, HasZeros, 4>;
  }
  project(matrices, blocks, num_matrices, begin, end, groups, digits, count, length);
}

}  // namespace
}  // namespace fiddler
