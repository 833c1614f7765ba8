// A layer computed with vectors: projections by rows, panels, tiles or columns, and what comes between and after them.
#pragma once

#include "activation.h"
#include "projections/coded.h"
#include "projections/columns.h"
#include "projections/digits.h"
#include "projections/panels.h"
#include "tiled.h"

namespace fiddler {
namespace {

// One or two projections [begin, end) of the same hidden rows, into block.results[m * block.pitch + output - begin].
template <class T, class Stored>
void project_plain(const Matrix* matrices, const Block* blocks, int num_matrices, int64_t begin, int64_t end,
             const typename T::Operand* const* x, int64_t count, int64_t length, Scratch& scratch) {
  if (T::pair > 1 || !matrices[0].is_transposed()) {
    if (T::has_tiles || count < T::min_panel_rows) {  // more rows are packed: into tiles if there are, else panels
      return project_rows<T, Stored>(matrices, blocks, num_matrices, begin, end, Inputs<T>{x, count, length});
    }
    for (int i = 0; i < num_matrices; ++i) {
      for (int64_t n = begin; n < end; n += panel_width<T>) {
        const int64_t last = n + panel_width<T> < end ? n + panel_width<T> : end;
        project_panel<T, Stored>(matrices[i], n, last, x, count, length, blocks[i].results + (n - begin), scratch);
      }
    }
  } else if constexpr (T::pair == 1) {
    for (int i = 0; i < num_matrices; ++i) clear_columns<T>(end - begin, count, blocks[i].results, blocks[i].pitch);
    for (int64_t k = 0; k < length; k += columns_shared) {
      const int64_t last = smaller(k + columns_shared, length);
      for (int i = 0; i < num_matrices; ++i) {
        add_columns<T, Stored>(matrices[i], begin, end, x, count, k, last, blocks[i].results, blocks[i].pitch);
      }
    }
  }
}

// Hidden rows that are multiplied as digits, if the tier does so with the weights' codes.
template <class T, class Stored>
constexpr int64_t most_digits_rows() {
  if constexpr (is_coded<Stored>) {
    if constexpr (!std::is_void_v<typename T::template Digits<Stored>>) return T::template Digits<Stored>::most_rows;
  }
  return 0;
}

// The same, of codes: see projections/coded.h and projections/digits.h.
template <class T, class Code>
void project_coded(const Matrix* matrices, const Block* blocks, int num_matrices, int64_t begin, int64_t end,
                   const typename T::Operand* const* x, int64_t count, int64_t length, Scratch& scratch) {
  if constexpr (most_digits_rows<T, Code>() > 0) {
    using Operand = typename T::Operand;
    using Digits = typename T::template Digits<Code>;
    const bool has_zeros = matrices[0].coding.zeros;
    constexpr bool takes_zeros = std::is_same_v<Code, Uint4>;
    const bool is_few = count >= Digits::fewest_rows && count <= Digits::most_rows;
    if (is_few && (takes_zeros || !has_zeros) && suits_digits<Digits>(matrices[0].coding, length)) {
      const auto project = takes_zeros && has_zeros ? project_with_digits<Digits, Code, takes_zeros, Operand>
                                                    : project_with_digits<Digits, Code, false, Operand>;
      return project(matrices, blocks, num_matrices, begin, end, x, count, length, scratch.message);
    }
  }
  if constexpr (!std::is_same_v<T, typename T::Exact>) {  // the same code for more rows, compiled once
    return project_coded<typename T::Exact, Code>(matrices, blocks, num_matrices, begin, end, x, count, length, scratch);
  }
  if (count <= coded_wide<T>) {
    return project_codes<T, Code, 4>(matrices, blocks, num_matrices, begin, end, x, count, length);
  }
  if (count <= T::coded_rows) {
    return project_codes<T, Code, 2>(matrices, blocks, num_matrices, begin, end, x, count, length);
  }
  unsigned char* memory = decoded_memory(decoded_bytes<T>(length));
  // whole panels, or as few as leave room for the hidden rows in the second-level cache
  const int64_t outputs = count < T::min_panel_rows ? decoded_outputs / 4 : decoded_outputs;
  for (int i = 0; i < num_matrices; ++i) {
    for (int64_t n = begin; n < end; n += outputs) {
      const int64_t last = smaller(n + outputs, end);
      const Matrix plain = decoded<T, Code>(matrices[i], n, last, length, memory);
      const Block block = {blocks[i].results + (n - begin), blocks[i].pitch};
      project_plain<T, typename T::Plain>(&plain, &block, 1, n, last, x, count, length, scratch);
    }
  }
}

template <class T, class Stored>
void project(const Matrix* matrices, const Block* blocks, int num_matrices, int64_t begin, int64_t end,
             const typename T::Operand* const* x, int64_t count, int64_t length, Scratch& scratch) {
  if constexpr (requires { T::template projects<Stored>(matrices[0], count, length); }) {  // in a way of the tier's own
    if (T::template projects<Stored>(matrices[0], count, length)) {
      return T::template project<Stored>(matrices, blocks, num_matrices, begin, end, x, count, length, scratch);
    }
  }
  if constexpr (is_coded<Stored>) {
    project_coded<T, Stored>(matrices, blocks, num_matrices, begin, end, x, count, length, scratch);
  } else {
    project_plain<T, Stored>(matrices, blocks, num_matrices, begin, end, x, count, length, scratch);
  }
}

inline void add_bias(const Matrix& matrix, int64_t begin, int64_t count, float* values) {
  if (!matrix.bias) return;
  for (int64_t i = 0; i < count; ++i) values[i] += matrix.bias[begin + i];
}

// Few rows are computed over wide blocks of outputs, more rows over as many outputs as a panel has, as panels require;
// with transposed weights, over as many outputs as Scratch holds.
template <class T, class Stored>
int64_t outputs_at_a_time(int64_t count, bool columns) {
  const bool is_few = count <= 2 || (count <= most_digits_rows<T, Stored>() && count < T::min_panel_rows);
  if (!columns) return is_few ? max_chunk_outputs : panel_outputs;
  return smaller(max_column_outputs, Scratch::block_floats / count / panel_outputs * panel_outputs);
}

// Calls body(first assignment, assignments, first output, last output) over blocks that fit in Scratch.
template <class T, class Stored, class Body>
void for_each_block(const ExpertRows& expert, bool columns, int64_t begin, int64_t end, Body body) {
  const int64_t last = expert.first + expert.count;
  for (int64_t a = expert.first; a < last; a += max_block_rows) {
    const int64_t count = smaller(last - a, max_block_rows);
    const int64_t width = outputs_at_a_time<T, Stored>(count, columns);
    for (int64_t n = begin; n < end; n += width) body(a, count, n, smaller(n + width, end), width);
  }
}

// Calls body(expert, first output, last output) with what is computed from hidden rows decoded, some outputs at a time.
template <class T, class Stored, class Body>
void decode_for_tiles(const Job& job, const ExpertRows& expert, int64_t begin, int64_t end, Body body) {
  const int64_t bytes = decoded_bytes<T>(job.hidden_size);
  unsigned char* memory = decoded_memory(3 * bytes);
  for (int64_t n = begin; n < end; n += decoded_outputs) {
    const int64_t last = smaller(n + decoded_outputs, end);
    ExpertRows plain = expert;
    plain.up = decoded<T, Stored>(expert.up, n, last, job.hidden_size, memory);
    if (job.gated) plain.gate = decoded<T, Stored>(expert.gate, n, last, job.hidden_size, memory + bytes);
    if (job.has_factor) plain.factor = decoded<T, Stored>(expert.factor, n, last, job.hidden_size, memory + 2 * bytes);
    body(plain, n, last);
  }
}

template <class T, class Stored>
void vector_inner(const Job& job, const ExpertRows& expert, int64_t begin, int64_t end, Scratch& scratch) {
  if constexpr (T::has_tiles) {
    if (expert.hidden_tiles.data) {
      if constexpr (is_coded<Stored>) {
        return decode_for_tiles<T, Stored>(job, expert, begin, end, [&](const ExpertRows& plain, int64_t n, int64_t last) {
          tiled_inner<T>(job, plain, n, last, scratch);
        });
      } else {
        return tiled_inner<T>(job, expert, begin, end, scratch);
      }
    }
  }
  const bool columns = has_columns(job, expert);
  for_each_block<T, Stored>(expert, columns, begin, end, [&](int64_t a, int64_t count, int64_t n, int64_t last, int64_t pitch) {
    const Matrix matrices[2] = {expert.up, expert.gate};
    const Block blocks[2] = {{scratch.up, pitch}, {scratch.gate, pitch}};
    const auto* x = reinterpret_cast<const typename T::Operand* const*>(job.hidden_rows + a);
    project<T, Stored>(matrices, blocks, job.gated ? 2 : 1, n, last, x, count, job.hidden_size, scratch);
    const Block factors = {scratch.factor, pitch};
    if (job.has_factor) {
      project<T, Stored>(&expert.factor, &factors, 1, n, last, x, count, job.hidden_size, scratch);
    }
    for (int64_t m = 0; m < count; ++m) {
      float* up = scratch.up + m * pitch;
      float* gate = job.gated ? scratch.gate + m * pitch : nullptr;
      add_bias(expert.up, n, last - n, up);
      if (gate) add_bias(expert.gate, n, last - n, gate);
      if (job.has_factor) multiply(scratch.factor + m * pitch, last - n, up);
      activate<FastMath>(job, gate, up, last - n, static_cast<typename T::Operand*>(job.inner_rows[a + m]) + n);
    }
  });
}

template <class T, class Stored>
void vector_outer(const Job& job, int64_t begin, int64_t end, Scratch& scratch) {
  for (int64_t r = 0; r < job.rows; ++r) {
    std::memset(job.sums + r * job.hidden_size + begin, 0, static_cast<size_t>(end - begin) * sizeof(float));
  }
  for (int64_t e = 0; e < job.num_experts; ++e) {
    const ExpertRows& expert = job.experts[e];
    if constexpr (T::has_tiles) {
      if (expert.inner_tiles.data) {
        if constexpr (is_coded<Stored>) {
          unsigned char* memory = decoded_memory(decoded_bytes<T>(job.intermediate_size));
          for (int64_t n = begin; n < end; n += decoded_outputs) {
            const int64_t last = smaller(n + decoded_outputs, end);
            ExpertRows plain = expert;
            plain.down = decoded<T, Stored>(expert.down, n, last, job.intermediate_size, memory);
            tiled_outer<T>(job, plain, n, last, scratch);
          }
        } else {
          tiled_outer<T>(job, expert, begin, end, scratch);
        }
        continue;
      }
    }
    const bool columns = expert.down.is_transposed();
    for_each_block<T, Stored>(expert, columns, begin, end, [&](int64_t a, int64_t count, int64_t n, int64_t last, int64_t pitch) {
      const Block block = {scratch.up, pitch};
      const auto* x = reinterpret_cast<const typename T::Operand* const*>(job.inner_rows + a);
      project<T, Stored>(&expert.down, &block, 1, n, last, x, count, job.intermediate_size, scratch);
      for (int64_t m = 0; m < count; ++m) {
        float* values = scratch.up + m * pitch;
        add_bias(expert.down, n, last - n, values);
        float* sums = job.sums + job.row[a + m] * job.hidden_size + n;
        const float weight = job.weight[a + m];
        for (int64_t i = 0; i < last - n; ++i) sums[i] += weight * values[i];
      }
    });
  }
  if (!job.output) return;
  for (int64_t r = 0; r < job.rows; ++r) {
    const float* sums = job.sums + r * job.hidden_size;
    auto* output = static_cast<Bf16*>(job.output) + r * job.hidden_size;
    for (int64_t n = begin; n < end; ++n) from_float(sums[n], output + n);
  }
}

template <class T>
void pack(const Job& job, const ExpertRows& expert, int64_t first, int64_t last) {
  if constexpr (T::has_tiles) {
    const auto* rows = reinterpret_cast<const Bf16* const*>(job.hidden_rows + expert.first);
    pack_tiles<T>(expert.hidden_tiles, rows, expert.count, job.hidden_size, first, last);
  }
}

template <class T, class Stored>
constexpr Ops vector_ops = {T::pair == 1 ? FIDDLER_FLOAT32 : FIDDLER_BFLOAT16,
                            T::pair > 1,
                            T::min_panel_rows,
                            T::rows_per_read,
                            vector_inner<T, Stored>,
                            vector_outer<T, Stored>,
                            T::has_tiles ? pack<T> : nullptr};

}  // namespace
}  // namespace fiddler
