// Projections of transposed weights, whose outputs lie next to each other: each input's weights are added, scaled, to all
// outputs. Outputs that lie apart (gate and up interleaved) are gathered first.
#pragma once

#include "rows.h"

namespace fiddler {
namespace {

constexpr int columns_at_a_time = 8;  // inputs whose weights stay in registers

template <class T, class Stored>
typename T::Vector load_outputs(const Stored* from, int64_t stride, int64_t count) {
  if (stride == 1 && count >= T::width) return T::load_weights(from);
  Stored buffer[T::width] = {};
  for (int64_t i = 0; i < count && i < T::width; ++i) buffer[i] = from[i * stride];
  return T::load_weights(buffer);
}

// Outputs [begin, end) of `count` hidden rows: results[m * pitch + output - begin]; the pitch holds whole vectors.
template <class T, class Stored>
void project_columns(const Matrix& matrix, int64_t begin, int64_t end, const float* const* x, int64_t count,
                     int64_t length, float* results, int64_t pitch) {
  for (int64_t m = 0; m < count; ++m) {
    for (int64_t n = 0; n < end - begin; n += T::width) T::store(results + m * pitch + n, T::zero());
  }
  const auto* weights = reinterpret_cast<const Stored*>(matrix.weights);
  const auto add = [&]<int C>(int64_t k) {
    for (int64_t n = begin; n < end; n += T::width) {
      typename T::Vector columns[C];
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) {
        const Stored* from = weights + n * matrix.out_stride + (k + c) * matrix.in_stride;
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
  int64_t k = 0;
  for (; k + columns_at_a_time <= length; k += columns_at_a_time) add.template operator()<columns_at_a_time>(k);
  for (; k < length; ++k) add.template operator()<1>(k);
}

}  // namespace
}  // namespace fiddler
