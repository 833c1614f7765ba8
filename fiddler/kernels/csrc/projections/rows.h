// Projections of some hidden rows: weights are read from memory once, and sums of R weight rows x M hidden rows stay in
// registers. Several weight rows that are far apart are read at a time, because one stream does not fill the memory
// bus. More hidden rows are multiplied M at a time, while the R weight rows stay in the cache.
#pragma once

#include "job.h"

namespace fiddler {
namespace {

constexpr int64_t prefetch_bytes = 4096;

// Into the second-level cache: it has many more requests under way at a time than the first one.
inline void prefetch(const void* from) { __builtin_prefetch(from, 0, 2); }

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <class T>
constexpr int step = T::width * T::pair;

// A vector of which only the first `count` values exist; the rest is 0.
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

// The inputs that are multiplied at a time: few enough that their part of the hidden rows stays in the second-level cache,
// because every weight row reads it again.
struct Segment {
  int64_t first;
  int64_t last;
  bool is_first;
  bool is_last;

  // From what is read to what is read next: further on in the row if rows are read whole, else the next row's segment.
  int64_t prefetch_distance(int64_t row_bytes) const { return is_first && is_last ? prefetch_bytes : row_bytes; }
};

// results[r][m * pitch] = weights[r] . x[m]; from the second segment on, that is added.
template <class T, int R, int M, class Stored>
void dot_block(const Stored* const* weights, const typename T::Operand* const* x, const Segment& segment,
               int64_t ahead, float* const* results, int64_t pitch) {
  typename T::Vector total[R][M];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) total[r][m] = T::zero();
  }
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
  const int64_t whole = segment.last - (segment.last - segment.first) % step<T>;
  for (int64_t i = segment.first; i < whole; i += step<T>) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) prefetch(reinterpret_cast<const char*>(weights[r] + i) + ahead);
    add([i](const Stored* w) { return T::load_weights(w + i); },
        [i](const typename T::Operand* v) { return T::load_operand(v + i); });
  }
  if (whole < segment.last) {
    const int64_t rest = segment.last - whole;
    add([=](const Stored* w) { return load_partial_weights<T>(w + whole, rest); },
        [=](const typename T::Operand* v) { return load_partial_operand<T>(v + whole, rest); });
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const float before = segment.is_first ? 0.0f : results[r][m * pitch];
      results[r][m * pitch] = before + T::sum(total[r][m]);
    }
  }
}

// The place of a projection's results: results[m * pitch + output - begin].
struct Block {
  float* results;
  int64_t pitch;
};

template <class T, int R, int M, class Stored>
void dot_some(const Stored* const* weights, const typename T::Operand* const* x, int64_t some, const Segment& segment,
              int64_t ahead, float* const* results, int64_t pitch) {
  if (some >= M) {
    dot_block<T, R, M>(weights, x, segment, ahead, results, pitch);
  } else if constexpr (M > 1) {
    dot_some<T, R, M - 1>(weights, x, some, segment, ahead, results, pitch);
  }
}

// The hidden rows that weights are multiplied with.
template <class T>
struct Inputs {
  const typename T::Operand* const* rows;
  int64_t count;
  int64_t length;
};

// One segment of outputs [begin, end) of one or two matrices, read as R streams; hidden rows in groups of up to M.
template <class T, int R, int M, class Stored>
void stream_segment(const Matrix* matrices, const Block* blocks, int num_matrices, int64_t begin, int64_t end,
                    const Inputs<T>& x, const Segment& segment) {
  const int64_t parts = R / num_matrices;
  const int64_t part = (end - begin) / parts;
  const int64_t pitch = blocks[0].pitch;
  const int64_t groups = (x.count + M - 1) / M;
  const int64_t ahead = segment.prefetch_distance(matrices[0].out_stride * int64_t{sizeof(Stored)});
  for (int64_t n = 0; n < part; ++n) {
    const Stored* weights[R];
    for (int r = 0; r < R; ++r) {
      const Matrix& matrix = matrices[r % num_matrices];
      const int64_t output = begin + r / num_matrices * part + n;
      weights[r] = reinterpret_cast<const Stored*>(matrix.weights) + output * matrix.out_stride;
    }
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t first = x.count * group / groups, last = x.count * (group + 1) / groups;
      float* results[R];
      for (int r = 0; r < R; ++r) {
        results[r] = blocks[r % num_matrices].results + first * pitch + r / num_matrices * part + n;
      }
      dot_some<T, R, M>(weights, x.rows + first, last - first, segment, ahead, results, pitch);
    }
  }
  if constexpr (R > 1) {
    const int64_t done = part * parts;
    if (begin + done == end) return;
    Block rest[2];
    for (int i = 0; i < num_matrices; ++i) rest[i] = {blocks[i].results + done, pitch};
    if (num_matrices == 2) {
      stream_segment<T, 2, M, Stored>(matrices, rest, 2, begin + done, end, x, segment);
    } else {
      stream_segment<T, 1, M, Stored>(matrices, rest, 1, begin + done, end, x, segment);
    }
  }
}

template <class T>
int64_t segment_length(const Inputs<T>& x) {
  constexpr int64_t cached = T::cached_bytes / int64_t{sizeof(typename T::Operand)};
  if (x.count * x.length <= cached) return x.length;
  const int64_t segments = (x.count * x.length + cached - 1) / cached;
  const int64_t even = (x.length + segments - 1) / segments;
  return (even + step<T> - 1) / step<T> * step<T>;
}

template <class T, class Stored>
void project_rows(const Matrix* matrices, const Block* blocks, int num_matrices, int64_t begin, int64_t end,
                  const Inputs<T>& x) {
  constexpr int rows_at_a_time = T::accumulators / 4;  // hidden rows whose sums with four weight rows fit in registers
  const int64_t length = segment_length(x);
  for (int64_t first = 0; first < x.length; first += length) {
    const bool is_last = first + length >= x.length;
    const Segment segment = {first, is_last ? x.length : first + length, first == 0, is_last};
    stream_segment<T, 4, rows_at_a_time, Stored>(matrices, blocks, num_matrices, begin, end, x, segment);
  }
}

}  // namespace
}  // namespace fiddler
