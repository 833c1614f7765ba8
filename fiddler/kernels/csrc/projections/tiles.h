// Projections on a CPU with matrix tiles. Weights are the first operand and are read in place: a tile is 16 rows of a
// matrix x 32 inputs. Hidden rows are the second operand, packed once for each expert: adjacent pairs of inputs of 16
// hidden rows. A product is [16 outputs][16 hidden rows], so that the activated values are already in the order in
// which the next projection takes them.
#pragma once

#include <type_traits>

#include "projections/rows.h"

namespace fiddler {
namespace {

constexpr int64_t tile_outputs = 16;
constexpr int64_t tile_floats = 256;                  // of sums: 16 outputs x 16 hidden rows
constexpr int64_t pair_outputs = 2 * tile_outputs;    // of two tiles of weights that are multiplied together
constexpr int64_t pair_bytes = 2 * RowTiles::bytes;   // of those two tiles, for 32 inputs
constexpr int64_t chunk_steps = Scratch::kept_bytes / pair_bytes;  // whose weights the first-level cache keeps

constexpr int64_t min_blocks_ahead = 6;  // of rows; fewer are multiplied before prefetching would help

// The weights that are read next. They are prefetched into the second-level cache little by little while tiles that are
// already cached are multiplied, because memory would be idle otherwise.
struct Ahead {
  const unsigned char* weights = nullptr;
  int64_t row_bytes = 0;
  int64_t num_rows = 0;
  int64_t used_bytes = 0;  // of each row
  int64_t row = 0, byte = 0;

  int64_t num_lines() const { return num_rows * (used_bytes / line_bytes + 1); }

  void fetch(int64_t lines) {
    for (; lines > 0 && row < num_rows; --lines) {
      __builtin_prefetch(weights + row * row_bytes + byte, 0, 2);
      byte += line_bytes;
      if (byte <= used_bytes) continue;  // rows seldom begin at a line's start, so that they touch one more
      byte = 0;
      ++row;
    }
  }

  static constexpr int64_t line_bytes = 64;
};

// Weights x packed hidden rows, over some steps of 32 inputs; sums are four tiles: [row block][tile of weights].
struct TileProduct {
  const unsigned char* weights;
  int64_t second;      // bytes from the first tile of weights to the second
  int64_t row_bytes;   // from an output to the next
  int64_t step_bytes;  // from 32 inputs to the next
  const unsigned char* rows;
  const unsigned char* more_rows;  // of the next row block, if there are two
  int64_t steps;
  float* sums;
  bool accumulate;
  unsigned char* keep;  // the tiles of weights are copied here, unless null
  Ahead* ahead;
  int64_t lines;  // to prefetch in each step
};

inline int64_t rounded_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Packs tiles [first, last), counted row block by row block.
template <class T>
void pack_tiles(const RowTiles& tiles, const Bf16* const* rows, int64_t count, int64_t length, int64_t first,
                int64_t last) {
  for (int64_t t = first; t < last; ++t) {
    const int64_t block = t / tiles.num_steps, step = t % tiles.num_steps;
    const int64_t begin = step * RowTiles::inputs;
    typename T::Vector pairs[RowTiles::rows];
    for (int64_t i = 0; i < RowTiles::rows; ++i) {
      const int64_t m = block * RowTiles::rows + i;
      if (m >= count) {
        pairs[i] = T::zero();
      } else if (length - begin >= RowTiles::inputs) {
        pairs[i] = T::load_operand(rows[m] + begin);
      } else {
        pairs[i] = load_partial_operand<T>(rows[m] + begin, length - begin);
      }
    }
    T::transpose(pairs);
    auto* to = reinterpret_cast<float*>(tiles.at(block, step));
    for (int64_t i = 0; i < RowTiles::rows; ++i) T::store(to + i * T::width, pairs[i]);
  }
}

// The rows of a matrix in two tiles, outputs [begin, begin + 32); those from `end` on are 0.
struct WeightRows {
  const unsigned char* first;
  int64_t row_bytes;
  int64_t num_rows;
  int64_t length;

  WeightRows(const Matrix& matrix, int64_t begin, int64_t end, int64_t inputs)
      : first(matrix.weights + begin * matrix.out_stride * int64_t{sizeof(Bf16)}),
        row_bytes(matrix.out_stride * int64_t{sizeof(Bf16)}),
        num_rows(end - begin < pair_outputs ? end - begin : pair_outputs),
        length(inputs) {}

  // Whether the matrix fills the tiles up to this input, so that they can be read in place.
  bool is_whole(int64_t last_input) const { return num_rows == pair_outputs && last_input <= length; }

  // Copies inputs [begin, begin + 32 * steps), and 0 beyond the matrix.
  void copy(int64_t begin, int64_t steps, unsigned char* to) const {
    std::memset(to, 0, static_cast<size_t>(steps * pair_bytes));
    for (int64_t row = 0; row < num_rows; ++row) {
      for (int64_t s = 0; s < steps; ++s) {
        const int64_t k = begin + s * RowTiles::inputs;
        const int64_t count = length - k < RowTiles::inputs ? length - k : RowTiles::inputs;
        unsigned char* tile = to + s * pair_bytes + row / tile_outputs * RowTiles::bytes;
        std::memcpy(tile + row % tile_outputs * step_bytes, first + row * row_bytes + k * int64_t{sizeof(Bf16)},
                    static_cast<size_t>(count) * sizeof(Bf16));
      }
    }
  }

  static constexpr int64_t step_bytes = RowTiles::inputs * int64_t{sizeof(Bf16)};
};

// Inputs of some outputs: all rows are multiplied with them before the next chunk.
struct Chunk {
  int64_t matrix = 0;
  int64_t pair = 0;
  int64_t begin = 0;  // in steps
  int64_t end = 0;
};

// The sums of a task, by matrix, by pair of tiles of outputs, and by row block.
struct TileSums {
  float* data;
  int64_t num_pairs;
  int64_t num_blocks;

  float* at(int64_t matrix, int64_t pair, int64_t block) const {
    return data + ((matrix * num_pairs + pair) * num_blocks + block) * 2 * tile_floats;
  }
};

// Outputs [begin, end) of some matrices x some row blocks.
template <class T>
class TileProjection {
 public:
  TileProjection(const Matrix* matrices, int64_t num_matrices, int64_t begin, int64_t end, int64_t length,
                 const RowTiles& x, int64_t first_block, const TileSums& sums, unsigned char* kept)
      : matrices_(matrices), num_matrices_(num_matrices), begin_(begin), end_(end), length_(length), x_(x),
        first_block_(first_block), last_block_(first_block + sums.num_blocks), sums_(sums), kept_(kept) {}

  void compute() {
    T::begin_tiles();
    Chunk chunk = first_of(0, 0, 0);
    while (chunk.end > chunk.begin) {
      const Chunk next = after(chunk);
      multiply(chunk, next);
      chunk = next;
    }
    T::end_tiles();
  }

 private:
  WeightRows weights(const Chunk& chunk) const {
    return WeightRows(matrices_[chunk.matrix], begin_ + chunk.pair * pair_outputs, end_, length_);
  }

  int64_t segment_end(int64_t step) const {
    return smaller((step / x_.segment_steps + 1) * x_.segment_steps, x_.num_steps);
  }

  // The chunk that starts at a step. Inputs that do not fill a tile are a chunk of their own.
  Chunk first_of(int64_t matrix, int64_t pair, int64_t step) const {
    Chunk chunk = {matrix, pair, step, segment_end(step)};
    const WeightRows rows = weights(chunk);
    // weights that are read once and in place are not copied, so that nothing limits their number
    const bool once = last_block_ - first_block_ <= 2 && rows.num_rows == pair_outputs;
    if (!once) chunk.end = smaller(chunk.end, step + chunk_steps);
    if (chunk.end * RowTiles::inputs > length_ && chunk.end - step > 1) --chunk.end;
    return chunk;
  }

  // The next chunk: all outputs of a segment of inputs come before the next segment. Empty after the last one.
  Chunk after(const Chunk& chunk) const {
    const int64_t segment = chunk.begin / x_.segment_steps * x_.segment_steps;
    if (chunk.end < segment_end(segment)) return first_of(chunk.matrix, chunk.pair, chunk.end);
    if (chunk.pair + 1 < sums_.num_pairs) return first_of(chunk.matrix, chunk.pair + 1, segment);
    if (chunk.matrix + 1 < num_matrices_) return first_of(chunk.matrix + 1, 0, segment);
    if (chunk.end < x_.num_steps) return first_of(0, 0, chunk.end);
    return {};
  }

  // Only the first two row blocks read weights in place; the others read the copy that was kept.
  void multiply(const Chunk& chunk, const Chunk& next) {
    const WeightRows rows = weights(chunk);
    const bool in_place = rows.is_whole(chunk.end * RowTiles::inputs);
    if (!in_place) rows.copy(chunk.begin * RowTiles::inputs, chunk.end - chunk.begin, kept_);
    Ahead ahead = last_block_ - first_block_ >= min_blocks_ahead ? ahead_of(next) : Ahead{};
    const int64_t later_steps = (last_block_ - first_block_ - 1) / 2 * (chunk.end - chunk.begin);
    const int64_t lines = later_steps ? (ahead.num_lines() + later_steps - 1) / later_steps : 0;
    for (int64_t block = first_block_; block < last_block_; block += 2) {
      const bool reads = in_place && block == first_block_;
      TileProduct product;
      product.weights = reads ? rows.first + chunk.begin * WeightRows::step_bytes : kept_;
      product.second = reads ? tile_outputs * rows.row_bytes : RowTiles::bytes;
      product.row_bytes = reads ? rows.row_bytes : WeightRows::step_bytes;
      product.step_bytes = reads ? WeightRows::step_bytes : pair_bytes;
      product.rows = x_.at(block, chunk.begin);
      product.steps = chunk.end - chunk.begin;
      product.sums = sums_.at(chunk.matrix, chunk.pair, block - first_block_);
      product.accumulate = chunk.begin > 0;
      product.keep = reads && block + 2 < last_block_ ? kept_ : nullptr;
      product.ahead = &ahead;
      product.lines = block == first_block_ ? 0 : lines;
      if (block + 1 < last_block_) {
        product.more_rows = x_.at(block + 1, chunk.begin);
        T::multiply_tiles(product, std::true_type{});
      } else {
        T::multiply_tiles(product, std::false_type{});
      }
    }
  }

  Ahead ahead_of(const Chunk& chunk) const {
    if (chunk.end == chunk.begin) return {};
    const WeightRows rows = weights(chunk);
    return {rows.first + chunk.begin * WeightRows::step_bytes, rows.row_bytes, rows.num_rows,
            (smaller(chunk.end * RowTiles::inputs, length_) - chunk.begin * RowTiles::inputs) * int64_t{sizeof(Bf16)}};
  }

  const Matrix* matrices_;
  int64_t num_matrices_;
  int64_t begin_, end_, length_;
  const RowTiles& x_;
  int64_t first_block_, last_block_;
  TileSums sums_;
  unsigned char* kept_;
};

}  // namespace
}  // namespace fiddler
