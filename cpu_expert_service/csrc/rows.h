// Projections of few hidden rows: weights stream from memory once, and sums of R weight rows x M hidden rows stay in
// registers. Several weight rows are read at a time, from places far apart, since one stream does not fill the memory bus.
#pragma once

#include "job.h"

namespace fiddler {
namespace {

constexpr int64_t prefetch_bytes = 2048;

template <class T>
constexpr int step = T::width * T::pair;

// A vector's worth of which only the first `count` are there; the rest is 0.
template <class T, class Stored>
typename T::Vector load_partial_weights(const Stored* from, int64_t count) {
  Stored buffer[step<T>] = {};
  std::memcpy(buffer, from, static_cast<size_t>(count) * sizeof(Stored));
  return T::load_weights(buffer);
}

template <class T>
typename T::Vector load_partial_operand(const typename T::Operand* from, int64_t count) {
  typename T::Operand buffer[step<T>] = {};
  std::memcpy(buffer, from, static_cast<size_t>(count) * sizeof(typename T::Operand));
  return T::load_operand(buffer);
}

// sums[r][m] = weights[r] . x[m]
template <class T, int R, int M, class Stored>
void dot_block(const Stored* const* weights, const typename T::Operand* const* x, int64_t length, float (*sums)[M]) {
  typename T::Vector total[R][M];
  for (int r = 0; r < R; ++r) {
    for (int m = 0; m < M; ++m) total[r][m] = T::zero();
  }
  const int64_t whole = length - length % step<T>;
  const auto add = [&](auto&& weights_at, auto&& operand_at) {
    typename T::Vector operand[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) operand[m] = operand_at(x[m]);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const typename T::Vector loaded = weights_at(weights[r]);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) total[r][m] = T::dot(total[r][m], loaded, operand[m]);
    }
  };
  for (int64_t i = 0; i < whole; i += step<T>) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) __builtin_prefetch(reinterpret_cast<const char*>(weights[r] + i) + prefetch_bytes);
    add([i](const Stored* w) { return T::load_weights(w + i); },
        [i](const typename T::Operand* v) { return T::load_operand(v + i); });
  }
  if (whole < length) {
    const int64_t rest = length - whole;
    add([=](const Stored* w) { return load_partial_weights<T>(w + whole, rest); },
        [=](const typename T::Operand* v) { return load_partial_operand<T>(v + whole, rest); });
  }
  for (int r = 0; r < R; ++r) {
    for (int m = 0; m < M; ++m) sums[r][m] = T::sum(total[r][m]);
  }
}

// Where a projection's results go: results[m * pitch + output - begin].
struct Block {
  float* results;
  int64_t pitch;
};

// R weight rows, of `outputs[r]` in matrix r % num_matrices, against `count` hidden rows in groups of up to M.
template <class T, int R, int M, class Stored>
void dot_group(const Stored* const* weights, float* const* results, int64_t pitch,
               const typename T::Operand* const* x, int64_t count, int64_t length) {
  if (count >= M) {
    float sums[R][M];
    dot_block<T, R, M>(weights, x, length, sums);
    for (int r = 0; r < R; ++r) {
      for (int m = 0; m < M; ++m) results[r][m * pitch] = sums[r][m];
    }
  } else if constexpr (M > 1) {
    dot_group<T, R, M - 1>(weights, results, pitch, x, count, length);
  }
}

// Outputs [begin, end) of one or two matrices, read as R streams.
template <class T, int R, int M, class Stored>
void stream_rows(const Matrix* matrices, const Block* blocks, int num_matrices, int64_t begin, int64_t end,
                 const typename T::Operand* const* x, int64_t count, int64_t length) {
  const int64_t parts = R / num_matrices;
  const int64_t part = (end - begin) / parts;
  const int64_t groups = (count + M - 1) / M;
  for (int64_t n = 0; n < part; ++n) {
    const Stored* weights[R];
    float* results[R];
    for (int r = 0; r < R; ++r) {
      const int64_t offset = r / num_matrices * part + n;
      const Matrix& matrix = matrices[r % num_matrices];
      weights[r] = reinterpret_cast<const Stored*>(matrix.weights) + (begin + offset) * matrix.out_stride;
      results[r] = blocks[r % num_matrices].results + offset;
    }
    const int64_t pitch = blocks[0].pitch;
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t first = count * group / groups, last = count * (group + 1) / groups;
      float* shifted[R];
      for (int r = 0; r < R; ++r) shifted[r] = results[r] + first * pitch;
      dot_group<T, R, M>(weights, shifted, pitch, x + first, last - first, length);
    }
  }
  if constexpr (R > 1) {
    const int64_t done = begin + part * parts;
    if (done == end) return;
    Block rest[2];
    for (int i = 0; i < num_matrices; ++i) rest[i] = {blocks[i].results + (done - begin), blocks[i].pitch};
    if (num_matrices == 2) {
      stream_rows<T, 2, M, Stored>(matrices, rest, 2, done, end, x, count, length);
    } else {
      stream_rows<T, 1, M, Stored>(matrices, rest, 1, done, end, x, count, length);
    }
  }
}

template <class T, class Stored>
void project_rows(const Matrix* matrices, const Block* blocks, int num_matrices, int64_t begin, int64_t end,
                  const typename T::Operand* const* x, int64_t count, int64_t length) {
  constexpr int wide = T::accumulators / 4;  // hidden rows that leave registers for four weight rows
  if (count <= wide) {
    stream_rows<T, 4, wide, Stored>(matrices, blocks, num_matrices, begin, end, x, count, length);
  } else {
    stream_rows<T, 2, T::accumulators / 3, Stored>(matrices, blocks, num_matrices, begin, end, x, count, length);
  }
}

}  // namespace
}  // namespace fiddler
