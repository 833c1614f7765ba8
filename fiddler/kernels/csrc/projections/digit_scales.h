// Scales and zero points of codes that are multiplied as integers, block by block: see digits.h. `Digits` are a tier's
// blocks of inputs and what it does with them.
#pragma once

#include "projections/codes.h"

namespace fiddler {
namespace {

// The weight 0 among the integers that codes are multiplied as. Codes of 4 bits whose groups have zero points of their own
// are raised by 15 less their zero point, so that all count from 15.
template <class Code, bool HasZeros>
constexpr int digits_zero = code_bits<Code> == 8 ? 128 : HasZeros ? 15 : 8;
template <>
constexpr int digits_zero<E2m1, false> = 12;
template <class Code>
constexpr float digits_factor = 1.0f;
template <>
constexpr float digits_factor<E2m1> = 0.5f;

constexpr int64_t digits_segment = 4096;  // inputs whose scales are decoded at a time; whole groups and blocks

// Whether each lane of sums belongs to one group, and groups and blocks of inputs end together.
template <class Digits>
bool suits_digits(const Coding& coding, int64_t length) {
  const int64_t group = coding.group_inputs;
  if (group >= length) return true;
  if (group % Digits::inputs == 0) return digits_segment % group == 0;
  return Digits::takes_small_groups && Digits::inputs % group == 0 && group % 16 == 0;
}

// The groups of a row's inputs, counted once for all rows: divisions take as long as a block. A row's segments are alike
// but for the last one.
struct Groups {
  int64_t blocks_each;     // blocks that one group covers; 1 if a block has several groups
  int64_t in_block;        // groups that end with a block; 1 if a group covers several blocks
  int64_t in_segment;
  int64_t in_last_segment;
  bool cover_segments;     // one group, whatever the segment

  Groups(int64_t group_inputs, int64_t length, int64_t block_inputs) {
    const int64_t last_segment = (length - 1) % digits_segment + 1;
    blocks_each = group_inputs > block_inputs ? group_inputs / block_inputs : 1;
    in_block = group_inputs > block_inputs ? 1 : block_inputs / group_inputs;
    cover_segments = group_inputs >= length;
    in_segment = cover_segments ? 1 : digits_segment / group_inputs;
    in_last_segment = cover_segments ? 1 : (last_segment - 1) / group_inputs + 1;
  }
};

// The scales of a weight row, of any kind and for groups of any size: decoded for a segment of inputs.
template <class Digits>
class DecodedScales {
 public:
  static constexpr int64_t most_groups = digits_segment / 16;
  static constexpr int64_t padding = Digits::lanes;  // which a block reads beyond its groups

  void begin_row(const Coding& coding, int64_t output) {
    coding_ = &coding;
    output_ = output;
  }
  void begin_segment(int64_t first_group, int64_t num_groups) {
    load_scales(*coding_, output_, first_group, num_groups, 1.0f, scales_);
    for (int64_t i = 0; i < padding; ++i) scales_[num_groups + i] = 0.0f;
  }
  // Those of a block, of which the first one is of this group of the segment.
  typename Digits::Vector of_block(int64_t group, typename Digits::Lanes lanes) const {
    return Digits::spread(scales_ + group, lanes);
  }
  float left_out() const { return 1.0f; }  // what a row's sum is to be multiplied with

 private:
  const Coding* coding_;
  int64_t output_;
  alignas(64) float scales_[most_groups + padding];
};

// Scales of the kind that the codes usually have, for each 32 inputs: read where they are stored, block by block.
template <class Digits, class Code>
class StoredScales {
 public:
  static constexpr int64_t group_inputs = 32;

  static bool suits(const Coding& coding, int64_t length) {
    return coding.scale_kind == Digits::template stored_scale<Code> && coding.group_inputs == group_inputs &&
           length % Digits::inputs == 0;
  }
  void begin_row(const Coding& coding, int64_t output) {
    row_ = coding.scales + coding.first_group(output) * bytes;
    multiplier_ = coding.multiplier;
  }
  void begin_segment(int64_t first_group, int64_t) { segment_ = row_ + first_group * bytes; }
  typename Digits::Vector of_block(int64_t group, typename Digits::Lanes) const {
    return Digits::template spread_stored<Code>(segment_ + group * bytes);
  }
  float left_out() const { return multiplier_; }

 private:
  static constexpr int64_t bytes = Digits::template stored_scale<Code> == FIDDLER_SCALE_E8M0 ? 1 : 2;
  const unsigned char* row_;
  const unsigned char* segment_;
  float multiplier_;
};

// The zero points of a segment of a weight row, as what makes codes count from the same zero, in each byte.
template <class Digits>
class Shifts {
 public:
  template <class Code>
  void load(const Coding& coding, int64_t output, int64_t first_group, int64_t num_groups) {
    const unsigned char* zeros = coding.zeros + coding.first_group(output) + first_group;
    for (int64_t g = 0; g < num_groups; ++g) shifts_[g] = 0x01010101u * (digits_zero<Code, true> - zeros[g]);
  }
  auto of_block(int64_t group, typename Digits::Lanes lanes) const { return Digits::spread_shifts(shifts_ + group, lanes); }

 private:
  alignas(64) uint32_t shifts_[DecodedScales<Digits>::most_groups + DecodedScales<Digits>::padding];
};

struct NoShifts {};

}  // namespace
}  // namespace fiddler
