// Projections of coded weights. Few hidden rows are multiplied with codes as they are decoded, and each group's sum with
// its scale. For more, the weights of some outputs are decoded into the second-level cache once, and multiplied from there
// as plain ones.
#pragma once

#include <new>

#include "projections/codes.h"
#include "projections/rows.h"

namespace fiddler {
namespace {

constexpr int64_t decoded_outputs = panel_outputs;  // whose weights are decoded at a time: those of a whole panel
constexpr int64_t scale_segment = 4096;  // inputs whose scales are decoded at a time
constexpr int64_t line_bytes = 64;

// Hidden rows whose sums, of a group and in all, leave registers for four weight rows; for more there are two.
template <class T>
constexpr int64_t coded_wide = T::accumulators / 8;

// A thread's memory for decoded weights, which only grows.
inline unsigned char* decoded_memory(int64_t bytes) {
  struct Memory {
    unsigned char* data = nullptr;
    int64_t capacity = 0;
    ~Memory() { ::operator delete[](data, std::align_val_t{64}); }
  };
  thread_local Memory memory;
  if (bytes > memory.capacity) {
    ::operator delete[](memory.data, std::align_val_t{64});
    memory.data = nullptr;
    memory.capacity = 0;
    memory.data = static_cast<unsigned char*>(::operator new[](static_cast<size_t>(bytes), std::align_val_t{64}));
    memory.capacity = bytes;
  }
  return memory.data;
}

template <class Code>
constexpr int64_t code_bytes(int64_t inputs) {
  return inputs * code_bits<Code> / 8;
}

// A vector's worth of codes, of which only the first `count` are there.
template <class T, class Code>
struct PartialCodes {
  unsigned char bytes[step<T>] = {};

  PartialCodes(const unsigned char* from, int64_t count) {
    std::memcpy(bytes, from, static_cast<size_t>((count * code_bits<Code> + 7) / 8));
  }
};

// results[r][m * pitch] (+)= weights[r] . x[m] over inputs [first, last) that the scales cover.
template <class T, class Code, int R, int M>
void coded_dot(const unsigned char* const* codes, const float* const* scales, const Coding* const* codings,
               const int64_t* outputs, const typename T::Operand* const* x, int64_t first, int64_t last,
               typename T::Vector (&total)[R][M]) {
  const int64_t group_inputs = codings[0]->group_inputs;
  const bool halves = group_inputs < step<T>;  // two scales for a vector
  const bool has_zeros = codings[0]->zeros != nullptr;
  // counted on, since a division takes as long as a group
  int64_t group = first / group_inputs, group_end = (group + 1) * group_inputs;
  typename T::Zero zeros[R];
  for (int r = 0; r < R; ++r) zeros[r] = T::template zero_point<Code>(usual_zero<Code>);
  for (int64_t begin = first, g = 0; begin < last; ++group, group_end += group_inputs) {
    const int64_t end = smaller(halves ? begin + step<T> : group_end, last);
    typename T::Vector sums[R][M];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      if (has_zeros) zeros[r] = T::template zero_point<Code>(zero_of<Code>(*codings[r], outputs[r], group));
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) sums[r][m] = T::zero();
    }
    const int64_t whole = end - (end - begin) % step<T>;
    for (int64_t i = begin; i < whole; i += step<T>) {
      if (code_bytes<Code>(i) % line_bytes == 0) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) prefetch(codes[r] + code_bytes<Code>(i) + prefetch_bytes);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const typename T::Vector weights = T::template decode<Code>(codes[r] + code_bytes<Code>(i), zeros[r]);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) sums[r][m] = T::dot(sums[r][m], weights, T::load_operand(x[m] + i));
      }
    }
    if (whole < end) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const PartialCodes<T, Code> part(codes[r] + code_bytes<Code>(whole), end - whole);
        const typename T::Vector weights = T::template decode<Code>(part.bytes, zeros[r]);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
          sums[r][m] = T::dot(sums[r][m], weights, load_partial_operand<T>(x[m] + whole, end - whole));
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const typename T::Vector scale = halves ? T::two_splats(scales[r][g], scales[r][g + 1]) : T::splat(scales[r][g]);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) total[r][m] = T::multiply_add(total[r][m], sums[r][m], scale);
    }
    g += halves ? 2 : 1;
    begin = end;
  }
}

// As coded_dot where every group is one vector, all of it there, and has no zero point of its own: nothing but decoding,
// one product and one scale for a group.
template <class T, class Code, int R, int M>
void coded_dot_by_vector(const unsigned char* const* codes, const float* const* scales,
                         const typename T::Operand* const* x, int64_t first, int64_t last,
                         typename T::Vector (&total)[R][M]) {
  const typename T::Zero zero = T::template zero_point<Code>(usual_zero<Code>);
  typename T::Vector sums[R][M];
  for (int r = 0; r < R; ++r) {
    for (int m = 0; m < M; ++m) sums[r][m] = total[r][m];
  }
  constexpr int64_t at_a_time = line_bytes / code_bytes<Code>(step<T>) ? line_bytes / code_bytes<Code>(step<T>) : 1;
  int64_t i = first, g = 0;
  const auto add = [&] {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const typename T::Vector weights = T::template decode<Code>(codes[r] + code_bytes<Code>(i), zero);
      const typename T::Vector scale = T::splat(scales[r][g]);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const typename T::Vector product = T::dot(T::zero(), weights, T::load_operand(x[m] + i));
        sums[r][m] = T::multiply_add(sums[r][m], product, scale);
      }
    }
    i += step<T>;
    ++g;
  };
  while (last - i >= at_a_time * step<T>) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) prefetch(codes[r] + code_bytes<Code>(i) + prefetch_bytes);
#pragma GCC unroll 4
    for (int64_t n = 0; n < at_a_time; ++n) add();
  }
  while (i < last) add();
  for (int r = 0; r < R; ++r) {
    for (int m = 0; m < M; ++m) total[r][m] = sums[r][m];
  }
}

// One output of each of R weight rows for M hidden rows.
template <class T, class Code, int R, int M>
void coded_block(const Matrix* const* matrices, const int64_t* outputs, const typename T::Operand* const* x,
                 int64_t length, float* const* results, int64_t pitch) {
  constexpr int64_t most_groups = scale_segment / 16 + 1;
  alignas(64) float scales[R][most_groups];
  const unsigned char* codes[R];
  const float* rows[R];
  const Coding* codings[R];
  typename T::Vector total[R][M];
  for (int r = 0; r < R; ++r) {
    codes[r] = matrices[r]->weights + outputs[r] * matrices[r]->out_stride;
    rows[r] = scales[r];
    codings[r] = &matrices[r]->coding;
    for (int m = 0; m < M; ++m) total[r][m] = T::zero();
  }
  const bool is_by_vector = codings[0]->group_inputs == step<T> && !codings[0]->zeros;
  for (int64_t first = 0; first < length; first += scale_segment) {
    const int64_t last = smaller(first + scale_segment, length);
    for (int r = 0; r < R; ++r) {
      const int64_t group_inputs = codings[r]->group_inputs, group = first / group_inputs;
      load_scales(*codings[r], outputs[r], group, (last - 1) / group_inputs - group + 1, T::template pair_factor<Code>, scales[r]);
      scales[r][(last - 1) / group_inputs - group + 1] = 0.0f;  // beside an odd number of halves
    }
    if (is_by_vector && (last - first) % step<T> == 0) {
      coded_dot_by_vector<T, Code, R, M>(codes, rows, x, first, last, total);
    } else {
      coded_dot<T, Code, R, M>(codes, rows, codings, outputs, x, first, last, total);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int m = 0; m < M; ++m) results[r][m * pitch] = T::sum(total[r][m]);
  }
}

template <class T, class Code, int R, int M>
void coded_some(const Matrix* const* matrices, const int64_t* outputs, const typename T::Operand* const* x,
                int64_t some, int64_t length, float* const* results, int64_t pitch) {
  if (some >= M) {
    coded_block<T, Code, R, M>(matrices, outputs, x, length, results, pitch);
  } else if constexpr (M > 1) {
    coded_some<T, Code, R, M - 1>(matrices, outputs, x, some, length, results, pitch);
  }
}

// Outputs [begin, end) of one or two matrices as R streams from places far apart, since one does not fill the memory bus.
template <class T, class Code, int R>
void project_codes(const Matrix* matrices, const Block* blocks, int num_matrices, int64_t begin, int64_t end,
                   const typename T::Operand* const* x, int64_t count, int64_t length) {
  const int64_t parts = R / num_matrices, part = (end - begin) / parts, pitch = blocks[0].pitch;
  for (int64_t n = 0; n < part; ++n) {
    const Matrix* rows[R];
    int64_t outputs[R];
    float* results[R];
    for (int r = 0; r < R; ++r) {
      const int64_t offset = r / num_matrices * part + n;
      rows[r] = &matrices[r % num_matrices];
      outputs[r] = begin + offset;
      results[r] = blocks[r % num_matrices].results + offset;
    }
    coded_some<T, Code, R, R == 4 ? coded_wide<T> : T::coded_rows>(rows, outputs, x, count, length, results, pitch);
  }
  if constexpr (R > 1) {
    const int64_t done = part * parts;
    if (begin + done == end) return;
    Block rest[2];
    for (int i = 0; i < num_matrices; ++i) rest[i] = {blocks[i].results + done, pitch};
    if (num_matrices == 2) {
      project_codes<T, Code, 2>(matrices, rest, 2, begin + done, end, x, count, length);
    } else {
      project_codes<T, Code, 1>(matrices, rest, 1, begin + done, end, x, count, length);
    }
  }
}

// Inputs [first, last) of a row, which have one scale and one zero point.
template <class T, class Code>
void decode_group(const unsigned char* codes, int64_t first, int64_t last, int zero, float scale, typename T::Plain* row) {
  int64_t i = first;
  if constexpr (requires { typename T::template Table<Code>; }) {
    // what each code stands for, so that decoding is looking up
    const typename T::template Table<Code> table(zero, scale);
    for (; last - i >= step<T>; i += step<T>) table.decode(codes + code_bytes<Code>(i), row + i);
  }
  const auto wide_zero = T::template wide_zero_point<Code>(zero);
  const auto splat = T::splat(scale);
  for (; last - i >= T::width; i += T::width) {
    T::store_plain(row + i, T::multiply(T::template decode_wide<Code>(codes + code_bytes<Code>(i), wide_zero), splat));
  }
  if (i < last) {
    const PartialCodes<T, Code> part(codes + code_bytes<Code>(i), last - i);
    typename T::Plain values[T::width];
    T::store_plain(values, T::multiply(T::template decode_wide<Code>(part.bytes, wide_zero), splat));
    std::memcpy(row + i, values, static_cast<size_t>(last - i) * sizeof(typename T::Plain));
  }
}

// Outputs [begin, end) as plain weights from `to` on, row by row, in what the tier multiplies: a matrix with the same
// numbers of outputs, of which only these may be read.
template <class T, class Code>
Matrix decoded(const Matrix& matrix, int64_t begin, int64_t end, int64_t length, unsigned char* to) {
  using Plain = typename T::Plain;
  constexpr int64_t most_groups = scale_segment / 16 + 1;
  alignas(64) float scales[most_groups];
  // rows that start a cache line further on each time do not all compete for the same lines of a cache
  const int64_t row_bytes = (length * int64_t{sizeof(Plain)} + 63) / 64 * 64 + 64;
  const Coding& coding = matrix.coding;
  for (int64_t n = begin; n < end; ++n) {
    const unsigned char* codes = matrix.weights + n * matrix.out_stride;
    auto* row = reinterpret_cast<Plain*>(to + (n - begin) * row_bytes);
    for (int64_t first = 0; first < length; first += scale_segment) {
      const int64_t last = smaller(first + scale_segment, length), group = first / coding.group_inputs;
      load_scales(coding, n, group, (last - 1) / coding.group_inputs - group + 1, T::template factor<Code>, scales);
      for (int64_t byte = code_bytes<Code>(first); byte < code_bytes<Code>(last); byte += line_bytes) {
        prefetch(codes + byte + prefetch_bytes);
      }
      for (int64_t begin_of_group = first, g = group; begin_of_group < last; ++g) {
        const int64_t end_of_group = smaller((g + 1) * coding.group_inputs, last);
        const int zero = zero_of<Code>(coding, n, g);
        decode_group<T, Code>(codes, begin_of_group, end_of_group, zero, scales[g - group], row);
        begin_of_group = end_of_group;
      }
    }
  }
  Matrix plain = matrix;
  plain.out_stride = row_bytes / int64_t{sizeof(Plain)};
  plain.in_stride = 1;
  plain.weights = to - begin * row_bytes;
  plain.coding = {};
  return plain;
}

template <class T>
int64_t decoded_bytes(int64_t length) {
  return decoded_outputs * ((length * int64_t{sizeof(typename T::Plain)} + 63) / 64 * 64 + 64);
}

}  // namespace
}  // namespace fiddler
