// The reference that the other tiers' attention is compared with: plain loops, sums in double.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "attention/attention.h"
#include "formats.h"

namespace fiddler {
namespace {

inline int64_t same_place(int64_t i, int64_t) { return i; }

template <class Stored>
void scalar_attend(const fiddler_attention& job, int64_t row, int64_t kv_head, int64_t begin, int64_t end,
                   const float* queries, int64_t count, float* parts, int64_t part_floats) {
  constexpr double minus_infinity = -std::numeric_limits<double>::infinity();
  const auto* keys = static_cast<const Stored*>(job.keys) + row * job.key_row_stride + kv_head * job.key_head_stride;
  const auto* values =
      static_cast<const Stored*>(job.values) + row * job.value_row_stride + kv_head * job.value_head_stride;
  const auto is_visible = [&](int64_t p) { return !job.visible || job.visible[row * job.visible_stride + p]; };
  double scores[attention_positions];
  for (int64_t q = 0; q < count; ++q) {
    auto* part = reinterpret_cast<AttentionPart*>(parts + q * part_floats);
    double largest = minus_infinity, sum = 0.0;
    for (int64_t p = begin; p < end; ++p) {
      double score = 0.0;
      for (int64_t i = 0; i < job.key_size; ++i) {
        score += static_cast<double>(queries[q * job.key_size + i]) *
                 static_cast<double>(to_float(keys + p * job.key_stride + i));
      }
      scores[p - begin] = score;
      if (is_visible(p) && score > largest) largest = score;
    }
    for (int64_t p = begin; p < end; ++p) {
      double& score = scores[p - begin];
      score = is_visible(p) ? std::exp(score - (largest == minus_infinity ? 0.0 : largest)) : 0.0;
      sum += score;
    }
    part->largest = static_cast<float>(largest);
    part->sum = static_cast<float>(sum);
    for (int64_t i = 0; i < job.value_size; ++i) {
      double total = 0.0;
      for (int64_t p = begin; p < end; ++p) {
        if (is_visible(p)) total += scores[p - begin] * static_cast<double>(to_float(values + p * job.value_stride + i));
      }
      part->values[i] = static_cast<float>(total);
    }
  }
}

template <class Stored>
constexpr AttentionOps scalar_attention = {same_place, scalar_attend<Stored>};

}  // namespace
}  // namespace fiddler
