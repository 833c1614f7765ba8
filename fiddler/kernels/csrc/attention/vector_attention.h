// A task of attention with vectors: scores of some positions, their exponentials, and the values times these.
#pragma once

#include <cmath>
#include <limits>

#include "activation.h"
#include "attention/attention.h"
#include "formats.h"

namespace fiddler {
namespace {

constexpr int64_t most_queries = 8;
constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

// Vectors are loaded in pairs, which may divide the values of both among them in any order; a tail is loaded in order.
template <class T, class Stored>
constexpr int64_t pair_values = 2 * T::width;

template <class T, class Stored>
int64_t place_in_pairs(int64_t i, int64_t size) {
  if constexpr (std::is_same_v<Stored, Bf16>) {  // values of even places, then those of odd ones
    const int64_t first = i / pair_values<T, Stored> * pair_values<T, Stored>;
    if (first + pair_values<T, Stored> > size) return i;
    return first + (i - first) % 2 * T::width + (i - first) / 2;
  } else {
    return i;
  }
}

// Asks for vectors of `count` positions, while others are computed.
template <class Stored>
void prefetch(const Stored* vectors, int64_t stride, int64_t size, int64_t count) {
  constexpr int64_t line_values = 64 / sizeof(Stored);
  for (int64_t p = 0; p < count; ++p) {
    for (int64_t i = 0; i < size; i += line_values) __builtin_prefetch(vectors + p * stride + i);
  }
}

// Scores of `Keys` positions, which follow one another, for `Queries` heads.
template <class T, class Stored, int Queries, int Keys>
void score(const float* queries, int64_t size, const Stored* keys, int64_t stride, float* scores) {
  typename T::Vector sums[Queries * Keys];
  for (auto& sum : sums) sum = T::zero();
  int64_t i = 0;
  for (; i + pair_values<T, Stored> <= size; i += pair_values<T, Stored>) {
    typename T::Vector key[Keys][2];
    for (int k = 0; k < Keys; ++k) T::load_pair(keys + k * stride + i, key[k]);
    for (int q = 0; q < Queries; ++q) {
      for (int half = 0; half < 2; ++half) {
        const auto query = T::load(queries + q * size + i + half * T::width);
        for (int k = 0; k < Keys; ++k) sums[q * Keys + k] = T::dot(sums[q * Keys + k], key[k][half], query);
      }
    }
  }
  float totals[Queries * Keys];
  T::add_lanes(sums, totals);
  for (int q = 0; q < Queries; ++q) {
    for (int k = 0; k < Keys; ++k) {
      float total = totals[q * Keys + k];
      for (int64_t tail = i; tail < size; ++tail) total += queries[q * size + tail] * to_float(keys + k * stride + tail);
      scores[q * attention_block + k] = total;
    }
  }
}

// Adds values [first, first + Vectors x width) of `count` positions, each times its exponential, to the sums.
template <class T, class Stored, int Queries, int Vectors>
void add_values(const float* exponentials, const Stored* values, int64_t stride, int64_t count, float* const* sums,
                int64_t first) {
  typename T::Vector held[Queries][Vectors];
  for (int q = 0; q < Queries; ++q) {
    for (int v = 0; v < Vectors; ++v) held[q][v] = T::load(sums[q] + first + v * T::width);
  }
  for (int64_t p = 0; p < count; ++p) {
    typename T::Vector value[Vectors];
    for (int v = 0; v < Vectors; v += 2) T::load_pair(values + p * stride + first + v * T::width, value + v);
    for (int q = 0; q < Queries; ++q) {
      const auto exponential = T::broadcast(exponentials + q * attention_block + p);
      for (int v = 0; v < Vectors; ++v) held[q][v] = T::dot(held[q][v], value[v], exponential);
    }
  }
  for (int q = 0; q < Queries; ++q) {
    for (int v = 0; v < Vectors; ++v) T::store(sums[q] + first + v * T::width, held[q][v]);
  }
}

// One value of a whole block, found lane by lane, in loops that a compiler vectorises.
template <class Function>
float reduce(const float* scores, float initial, Function function) {
  constexpr int64_t lanes = 16;
  float found[lanes];
  for (float& lane : found) lane = initial;
  for (int64_t p = 0; p < attention_block; p += lanes) {
    for (int64_t lane = 0; lane < lanes; ++lane) found[lane] = function(found[lane], scores[p + lane]);
  }
  for (int64_t half = lanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) found[lane] = function(found[lane], found[lane + half]);
  }
  return found[0];
}

// Hides what is masked, and turns scores into exponentials. Returns what the earlier sums are to be multiplied by.
inline float exponentiate(float* scores, int64_t count, const uint8_t* visible, AttentionPart& part) {
  for (int64_t p = count; p < attention_block; ++p) scores[p] = minus_infinity;
  if (visible) {
    for (int64_t p = 0; p < count; ++p) scores[p] = visible[p] ? scores[p] : minus_infinity;
  }
  const float largest = reduce(scores, part.largest, [](float a, float b) { return b > a ? b : a; });
  // nothing seen yet: 0 in place of -inf, whose difference from itself is not a number
  const float base = largest == minus_infinity ? 0.0f : largest;
  const float kept = part.largest == minus_infinity ? 0.0f : fast_exp(part.largest - base);
  for (int64_t p = 0; p < attention_block; ++p) {
    const bool is_hidden = scores[p] == minus_infinity;
    const float exponential = fast_exp(is_hidden ? 0.0f : scores[p] - base);
    scores[p] = is_hidden ? 0.0f : exponential;
  }
  part.sum = part.sum * kept + reduce(scores, 0.0f, [](float a, float b) { return a + b; });
  part.largest = largest;
  return kept;
}

// A block of at most attention_block positions, for `Queries` heads.
template <class T, class Stored, int Queries>
void attend_block(const fiddler_attention& job, const Stored* keys, const Stored* values, const uint8_t* visible,
                  int64_t count, const float* queries, AttentionPart* const* parts) {
  constexpr int at_once = most_queries / Queries;
  alignas(64) float scores[Queries * attention_block];
  int64_t p = 0;
  for (; p + at_once <= count; p += at_once) {
    prefetch(values + p * job.value_stride, job.value_stride, job.value_size, at_once);
    score<T, Stored, Queries, at_once>(queries, job.key_size, keys + p * job.key_stride, job.key_stride, scores + p);
  }
  for (; p < count; ++p) {
    score<T, Stored, Queries, 1>(queries, job.key_size, keys + p * job.key_stride, 0, scores + p);
  }
  float* sums[Queries];
  for (int q = 0; q < Queries; ++q) {
    const float kept = exponentiate(scores + q * attention_block, count, visible, *parts[q]);
    sums[q] = parts[q]->values;
    if (kept == 1.0f) continue;
    for (int64_t i = 0; i < job.value_size; ++i) sums[q][i] *= kept;
  }
  // as many sums as registers hold
  constexpr int together = Queries < T::accumulators / 2 ? Queries : Queries / 2;
  constexpr int vectors = at_once < 2 ? 2 : at_once;
  int64_t i = 0;
  for (; i + vectors * T::width <= job.value_size; i += vectors * T::width) {
    prefetch(keys + (count + i * count / job.value_size) * job.key_stride, job.key_stride, job.key_size,
             count * vectors * T::width / job.value_size);
    for (int q = 0; q < Queries; q += together) {
      const float* exponentials = scores + q * attention_block;
      add_values<T, Stored, together, vectors>(exponentials, values, job.value_stride, count, sums + q, i);
    }
  }
  for (; i + 2 * T::width <= job.value_size; i += 2 * T::width) {
    add_values<T, Stored, Queries, 2>(scores, values, job.value_stride, count, sums, i);
  }
  for (; i < job.value_size; ++i) {
    for (int q = 0; q < Queries; ++q) {
      for (int64_t at = 0; at < count; ++at) {
        sums[q][i] += scores[q * attention_block + at] * to_float(values + at * job.value_stride + i);
      }
    }
  }
}

template <class T, class Stored>
void vector_attend(const fiddler_attention& job, int64_t row, int64_t kv_head, int64_t begin, int64_t end,
                   const float* queries, int64_t count, float* parts, int64_t part_floats) {
  const auto* keys = static_cast<const Stored*>(job.keys) + row * job.key_row_stride + kv_head * job.key_head_stride;
  const auto* values =
      static_cast<const Stored*>(job.values) + row * job.value_row_stride + kv_head * job.value_head_stride;
  const uint8_t* visible = job.visible ? job.visible + row * job.visible_stride : nullptr;
  for (int64_t q = 0; q < count; ++q) {
    auto* part = reinterpret_cast<AttentionPart*>(parts + q * part_floats);
    part->largest = minus_infinity;
    part->sum = 0.0f;
    for (int64_t i = 0; i < job.value_size; ++i) part->values[i] = 0.0f;
  }
  for (int64_t first = begin; first < end; first += attention_block) {
    int64_t start = first, stop = end - first < attention_block ? end : first + attention_block;
    // what is hidden at either end, beyond a row's own positions or before a window, is not read
    while (visible && start < stop && !visible[start]) ++start;
    while (visible && start < stop && !visible[stop - 1]) --stop;
    if (start == stop) continue;
    const int64_t positions = stop - start;
    const uint8_t* seen = visible ? visible + start : nullptr;
    const Stored* key = keys + start * job.key_stride;
    const Stored* value = values + start * job.value_stride;
    for (int64_t q = 0; q < count;) {
      const int64_t left = count - q;
      const int64_t number = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
      AttentionPart* own[most_queries];
      for (int64_t i = 0; i < number; ++i) own[i] = reinterpret_cast<AttentionPart*>(parts + (q + i) * part_floats);
      const float* query = queries + q * job.key_size;
      switch (number) {
        case 8:
          attend_block<T, Stored, 8>(job, key, value, seen, positions, query, own);
          break;
        case 4:
          attend_block<T, Stored, 4>(job, key, value, seen, positions, query, own);
          break;
        case 2:
          attend_block<T, Stored, 2>(job, key, value, seen, positions, query, own);
          break;
        default:
          attend_block<T, Stored, 1>(job, key, value, seen, positions, query, own);
      }
      q += number;
    }
  }
}

template <class T, class Stored>
constexpr AttentionOps vector_attention = {place_in_pairs<T, Stored>, vector_attend<T, Stored>};

}  // namespace
}  // namespace fiddler
