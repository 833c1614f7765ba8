// Few hidden rows times integer codes, by integer products: an input is written as two digits of 8 bits, (256 * high + low)
// * scale, with a scale for 32 or 128 inputs, so that a sum of products is exact before scales. The scale is a power of
// two. That loses less than a bfloat16's own rounding: inputs of 8 bits are exact down to 1/128 of the largest of them.
#pragma once

#include <array>
#include <vector>

#include "projections/codes.h"
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

// The weight 0 among the integers that codes are multiplied as. Where groups have zero points of their own, codes are
// made larger by what lacks to the largest one.
template <class Code, bool HasZeros>
constexpr int digits_zero = code_bits<Code> == 8 ? 128 : HasZeros ? 15 : 8;
template <>
constexpr int digits_zero<E2m1, false> = 12;
template <class Code>
constexpr float digits_factor = 1.0f;
template <>
constexpr float digits_factor<E2m1> = 0.5f;

constexpr int64_t digits_prefetch_bytes = 4096;  // further than elsewhere, since a line takes less time
constexpr int64_t digits_segment = 4096;  // inputs whose scales are decoded at a time; whole groups and blocks

// Whether each lane of sums belongs to one group, and groups and blocks of inputs end together.
template <class Digits>
bool suits_digits(const Coding& coding, int64_t length) {
  const int64_t group = coding.group_inputs;
  if (group >= length) return true;
  if (group % Digits::inputs == 0) return digits_segment % group == 0;
  return Digits::takes_small_groups && Digits::inputs % group == 0 && group % 16 == 0;
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

// A row of a coded matrix, with the scales of a segment.
template <class Digits>
struct DigitsRow {
  static constexpr int64_t most_groups = digits_segment / 16;
  static constexpr int64_t padding = Digits::lanes;  // which a block reads beyond its groups
  const unsigned char* codes;
  const Coding* coding;
  int64_t output;
  alignas(64) float scales[most_groups + padding];
  alignas(64) uint32_t shifts[most_groups + padding];  // what makes codes count from the same zero, in each byte

  template <class Code, bool HasZeros>
  void load(int64_t first_group, int64_t num_groups) {
    load_scales(*coding, output, first_group, num_groups, digits_factor<Code>, scales);
    for (int64_t i = 0; i < padding; ++i) scales[num_groups + i] = 0.0f;
    if constexpr (HasZeros) {
      const unsigned char* zeros = coding->zeros + coding->first_group(output) + first_group;
      for (int64_t g = 0; g < num_groups; ++g) shifts[g] = 0x01010101u * (digits_zero<Code, true> - zeros[g]);
    }
  }
};

// One output of each of R weight rows for M hidden rows.
template <class Digits, class Code, bool HasZeros, int R, int M>
void digits_block(DigitsRow<Digits> (&rows)[R], const typename Digits::Block* const* x, int64_t length,
                  float* const* results, int64_t pitch) {
  using Vector = typename Digits::Vector;
  constexpr int64_t bits = code_bits<Code>, block_bytes = Digits::inputs * bits / 8;
  const int64_t group_inputs = smaller(rows[0].coding->group_inputs, length);
  // a row shorter than a block is one group, too
  const typename Digits::Lanes lanes = Digits::lanes_of_groups(group_inputs < length ? group_inputs : Digits::inputs);
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
      if constexpr (HasZeros) {
        unpacked[r] = Digits::shifted(unpacked[r], Digits::spread_shifts(rows[r].shifts + group, lanes));
      }
      scales[r] = Digits::spread(rows[r].scales + group, lanes);
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
  for (int64_t first = 0; first < length; first += digits_segment) {
    const int64_t last = smaller(first + digits_segment, length), first_group = first / group_inputs;
    for (int r = 0; r < R; ++r) rows[r].template load<Code, HasZeros>(first_group, (last - 1) / group_inputs - first_group + 1);
    const bool one_group = group_inputs >= last - first;
    const int64_t blocks_per_group = group_inputs > Digits::inputs ? group_inputs / Digits::inputs : 1;
    const int64_t groups_per_block = group_inputs > Digits::inputs ? 1 : Digits::inputs / group_inputs;
    const unsigned char* codes[R];
    for (int r = 0; r < R; ++r) codes[r] = rows[r].codes + first * bits / 8;
    int64_t block = first / Digits::inputs, group = 0, in_group = 0;
    for (int64_t i = first; i + Digits::inputs <= last; i += Digits::inputs, ++block) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
        for (int64_t line = 0; line < block_bytes; line += 64) prefetch(codes[r] + line + digits_prefetch_bytes);
      }
      add(codes, block, group);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) codes[r] += block_bytes;
      if (!one_group && ++in_group == blocks_per_group) {
        in_group = 0;
        group += groups_per_block;
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
    for (int m = 0; m < M; ++m) results[r][m * pitch] = Digits::sum(total[r][m]);
  }
}

// As many hidden rows as there are, M at a time: a weight row stays in the first-level cache.
template <class Digits, class Code, bool HasZeros, int R, int M>
void digits_some(DigitsRow<Digits> (&rows)[R], const typename Digits::Block* const* x, int64_t count, int64_t length,
                 float* const* results, int64_t pitch) {
  float* to[R];
  for (int r = 0; r < R; ++r) to[r] = results[r];
  for (; count >= M; count -= M, x += M) {
    digits_block<Digits, Code, HasZeros, R, M>(rows, x, length, to, pitch);
    for (int r = 0; r < R; ++r) to[r] += M * pitch;
  }
  if constexpr (M > 1) {
    if (count > 0) digits_some<Digits, Code, HasZeros, R, M - 1>(rows, x, count, length, to, pitch);
  }
}

// Outputs [begin, end) of one or two matrices as R streams from places far apart: see project_codes.
template <class Digits, class Code, bool HasZeros, int R>
void project_digits(const Matrix* matrices, const Block* blocks, int num_matrices, int64_t begin, int64_t end,
                    const typename Digits::Block* const* x, int64_t count, int64_t length) {
  const int64_t parts = R / num_matrices, part = (end - begin) / parts, pitch = blocks[0].pitch;
  DigitsRow<Digits> rows[R];
  for (int64_t n = 0; n < part; ++n) {
    float* results[R];
    for (int r = 0; r < R; ++r) {
      const Matrix& matrix = matrices[r % num_matrices];
      const int64_t offset = r / num_matrices * part + n;
      rows[r].codes = matrix.weights + (begin + offset) * matrix.out_stride;
      rows[r].coding = &matrix.coding;
      rows[r].output = begin + offset;
      results[r] = blocks[r % num_matrices].results + offset;
    }
    digits_some<Digits, Code, HasZeros, R, Digits::rows_at_a_time>(rows, x, count, length, results, pitch);
  }
  if constexpr (R > 1) {
    const int64_t done = part * parts;
    if (begin + done == end) return;
    Block rest[2];
    for (int i = 0; i < num_matrices; ++i) rest[i] = {blocks[i].results + done, pitch};
    if (num_matrices == 2) {
      project_digits<Digits, Code, HasZeros, 2>(matrices, rest, 2, begin + done, end, x, count, length);
    } else {
      project_digits<Digits, Code, HasZeros, 1>(matrices, rest, 1, begin + done, end, x, count, length);
    }
  }
}

template <class Digits, class Code, bool HasZeros, class Operand>
void project_with_digits(const Matrix* matrices, const Block* blocks, int num_matrices, int64_t begin, int64_t end,
                         const Operand* const* x, int64_t count, int64_t length, uint64_t message) {
  const typename Digits::Block* digits[Digits::most_rows];
  for (int64_t m = 0; m < count; ++m) digits[m] = digits_of<Digits>(x[m], length, digits_zero<Code, HasZeros>, message);
  project_digits<Digits, Code, HasZeros, 4>(matrices, blocks, num_matrices, begin, end, digits, count, length);
}

}  // namespace
}  // namespace fiddler
