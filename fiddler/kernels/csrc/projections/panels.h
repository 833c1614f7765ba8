// Projections of more hidden rows than the second-level cache keeps beside weights: a block of weights is transposed into a panel that stays in the cache. Every hidden
// row is multiplied with the panel, one input at a time, and the sums stay in registers.
#pragma once

#include "projections/rows.h"

namespace fiddler {
namespace {

template <class T>
constexpr int panel_width = T::width * T::panel_vectors;  // outputs

// Packs outputs [begin, end) x inputs [first, last) as panel[input / pair][output]; outputs beyond `end` are 0.
template <class T, class Stored>
void pack_panel(const Matrix& matrix, int64_t begin, int64_t end, int64_t first, int64_t last, float* panel) {
  const auto* weights = reinterpret_cast<const Stored*>(matrix.weights);
  for (int v = 0; v < T::panel_vectors; ++v) {
    for (int64_t k = first; k < last; k += step<T>) {
      typename T::Vector rows[T::width];
#pragma GCC unroll 16
      for (int i = 0; i < T::width; ++i) {
        const int64_t n = begin + v * T::width + i;
        const Stored* from = weights + n * matrix.out_stride + k;
        prefetch(reinterpret_cast<const char*>(from) + T::panel_inputs * sizeof(Stored));
        if (n >= end) {
          rows[i] = T::zero();
        } else if (last - k >= step<T>) {
          rows[i] = T::load_weights(from);
        } else {
          rows[i] = load_partial_weights<T>(from, last - k);
        }
      }
      T::transpose(rows);
      float* to = panel + (k - first) / T::pair * panel_width<T> + v * T::width;
#pragma GCC unroll 16
      for (int i = 0; i < T::width; ++i) T::store(to + i * panel_width<T>, rows[i]);
    }
  }
}

// results[m][0, panel_width) (+)= x[m][first, first + steps * pair) x panel
template <class T, int M>
void multiply_panel(const float* panel, const typename T::Operand* const* x, int64_t first, int64_t steps,
                    float* results, bool accumulate) {
  constexpr int V = T::panel_vectors;
  typename T::Vector sums[M][V];
  const typename T::Operand* inputs[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    inputs[m] = x[m] + first;
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      sums[m][v] = accumulate ? T::load(results + m * panel_outputs + v * T::width) : T::zero();
    }
  }
  for (int64_t s = 0; s < steps; ++s) {
    typename T::Vector weights[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) weights[v] = T::load(panel + s * panel_width<T> + v * T::width);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const typename T::Vector input = T::broadcast(inputs[m] + s * T::pair);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sums[m][v] = T::dot(sums[m][v], weights[v], input);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) T::store(results + m * panel_outputs + v * T::width, sums[m][v]);
  }
}

template <class T, int M>
void multiply_some(int64_t count, const float* panel, const typename T::Operand* const* x, int64_t first,
                   int64_t steps, float* results, bool accumulate) {
  if (count == M) {
    multiply_panel<T, M>(panel, x, first, steps, results, accumulate);
  } else if constexpr (M > 1) {
    multiply_some<T, M - 1>(count, panel, x, first, steps, results, accumulate);
  }
}

// Outputs [begin, end), at most panel_width, of `count` hidden rows: results[m * panel_outputs + output - begin].
template <class T, class Stored>
void project_panel(const Matrix& matrix, int64_t begin, int64_t end, const typename T::Operand* const* x,
                   int64_t count, int64_t length, float* results, Scratch& scratch) {
  constexpr int M = T::accumulators / T::panel_vectors;
  static_assert(T::panel_inputs / T::pair * panel_width<T> <= Scratch::panel_floats);
  const int64_t groups = (count + M - 1) / M;
  for (int64_t first = 0; first < length; first += T::panel_inputs) {
    const int64_t last = first + T::panel_inputs < length ? first + T::panel_inputs : length;
    pack_panel<T, Stored>(matrix, begin, end, first, last, scratch.panel);
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t row = count * group / groups, next = count * (group + 1) / groups;
      multiply_some<T, M>(next - row, scratch.panel, x + row, first, (last - first + T::pair - 1) / T::pair,
                          results + row * panel_outputs, first > 0);
    }
  }
}

}  // namespace
}  // namespace fiddler
