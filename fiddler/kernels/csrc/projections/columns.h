// Projections of transposed weights, where the outputs of one input are adjacent: each input's weights, scaled, are
// added to all outputs. Outputs that are not adjacent (gate and up interleaved) are gathered first.
#pragma once

#include <type_traits>

#include "projections/rows.h"

namespace fiddler {
namespace {

constexpr int columns_at_a_time = 8;    // inputs whose weights stay in registers
constexpr int64_t columns_shared = 256;  // inputs before the next matrix's turn: interleaved ones share cache lines

template <class T, class Stored>
typename T::Vector load_outputs(const Stored* from, int64_t stride, int64_t count) {
  if (stride == 1 && count >= T::width) return T::load_weights(from);
  if constexpr (std::is_same_v<Stored, Bf16>) {
    if (stride == 2 && count > T::width) return T::load_alternate(from);  // reads one beyond the last lane's
  }
  Stored buffer[T::width] = {};
  for (int64_t i = 0; i < count && i < T::width; ++i) buffer[i] = from[i * stride];
  return T::load_weights(buffer);
}

template <class T>
void clear_columns(int64_t width, int64_t count, float* results, int64_t pitch) {
  for (int64_t m = 0; m < count; ++m) {
    for (int64_t n = 0; n < width; n += T::width) T::store(results + m * pitch + n, T::zero());
  }
}

// Adds what inputs [first, last) contribute to outputs [begin, end) of `count` hidden rows, in results[m * pitch +
// output - begin]; the pitch holds whole vectors. It prefetches, because the CPU does not: an input is too far from the
// next one.
template <class T, class Stored>
void add_columns(const Matrix& matrix, int64_t begin, int64_t end, const float* const* x, int64_t count, int64_t first,
                 int64_t last, float* results, int64_t pitch) {
  const auto* weights = reinterpret_cast<const Stored*>(matrix.weights);
  const auto add = [&]<int C>(int64_t k) {
    for (int64_t n = begin; n < end; n += T::width) {
      typename T::Vector columns[C];
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) {
        const Stored* from = weights + n * matrix.out_stride + (k + c) * matrix.in_stride;
        __builtin_prefetch(from + columns_at_a_time * matrix.in_stride);
        columns[c] = load_outputs<T>(from, matrix.out_stride, end - n);
      }
      for (int64_t m = 0; m < count; ++m) {
        float* to = results + m * pitch + (n - begin);
        typename T::Vector sum = T::load(to);
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) sum = T::dot(sum, columns[c], T::broadcast(x[m] + k + c));
        T::store(to, sum);
      }
    }
  };
  int64_t k = first;
  for (; k + columns_at_a_time <= last; k += columns_at_a_time) add.template operator()<columns_at_a_time>(k);
  for (; k < last; ++k) add.template operator()<1>(k);
}

}  // namespace
}  // namespace fiddler
