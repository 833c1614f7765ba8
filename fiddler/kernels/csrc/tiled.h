// A layer computed with matrix tiles: what comes between and after the projections of tiles.h.
#pragma once

#include "activation.h"
#include "projections/tiles.h"

namespace fiddler {
namespace {

inline void add_tile_bias(const Matrix& matrix, int64_t begin, int64_t end, float* tile) {
  if (!matrix.bias) return;
  for (int64_t i = 0; i < smaller(end - begin, tile_outputs); ++i) {
    for (int64_t m = 0; m < RowTiles::rows; ++m) tile[i * RowTiles::rows + m] += matrix.bias[begin + i];
  }
}

// Stores [16 outputs][16 rows] as 8 rows of pairs, the form in which the next projection's tile takes them.
inline void store_pairs(const float* tile, unsigned char* to) {
  for (int64_t i = 0; i < tile_outputs; i += 2, to += RowTiles::rows * 4) {
    uint32_t pairs[RowTiles::rows];
    for (int64_t m = 0; m < RowTiles::rows; ++m) {
      const float* values = tile + i * RowTiles::rows + m;
      pairs[m] = bf16_bits(values[0]) | bf16_bits(values[RowTiles::rows]) << 16;
    }
    std::memcpy(to, pairs, sizeof pairs);
  }
}

// Calls body(first row block, number of row blocks), each time for as many as Scratch has sums for.
template <class Body>
void for_each_tile_block(const RowTiles& tiles, Body body) {
  constexpr int64_t most = max_block_rows / RowTiles::rows;
  for (int64_t first = 0; first < tiles.num_blocks; first += most) body(first, smaller(tiles.num_blocks - first, most));
}

// As vector_inner, for an expert whose rows are packed.
template <class T>
void tiled_inner(const Job& job, const ExpertRows& expert, int64_t begin, int64_t end, Scratch& scratch) {
  const Matrix matrices[3] = {expert.up, job.gated ? expert.gate : expert.factor, expert.factor};
  const int64_t num_matrices = 1 + job.gated + job.has_factor;
  const int64_t factor = num_matrices - 1, num_pairs = rounded_up(end - begin, pair_outputs) / pair_outputs;
  for_each_tile_block(expert.hidden_tiles, [&](int64_t first, int64_t num_blocks) {
    const TileSums sums = {scratch.tile_sums, num_pairs, num_blocks};
    TileProjection<T>(matrices, num_matrices, begin, end, job.hidden_size, expert.hidden_tiles, first, sums,
                      scratch.kept).compute();
    for (int64_t t = 0; t < num_pairs * num_blocks * 2; ++t) {
      const int64_t pair = t / 2 / num_blocks, block = t / 2 % num_blocks, half = t % 2;
      const int64_t n = begin + pair * pair_outputs + half * tile_outputs;
      const auto tile = [&](int64_t matrix) { return sums.at(matrix, pair, block) + half * tile_floats; };
      float* up = tile(0);
      float* gate = job.gated ? tile(1) : nullptr;
      add_tile_bias(expert.up, n, end, up);
      if (gate) add_tile_bias(expert.gate, n, end, gate);
      if (job.has_factor) multiply(tile(factor), tile_floats, up);
      activate<FastMath>(job, gate, up, tile_floats, up);
      unsigned char* to = expert.inner_tiles.at(first + block, n / RowTiles::inputs);
      store_pairs(up, to + n % RowTiles::inputs / tile_outputs * (RowTiles::bytes / 2));
    }
  });
}

// Adds [16 outputs][16 rows] to the sums of `count` rows, whose first assignment is `a`.
template <class T>
void add_tile(const Job& job, float* tile, int64_t a, int64_t count, int64_t begin, int64_t num_outputs) {
  typename T::Vector rows[RowTiles::rows];
  for (int64_t i = 0; i < tile_outputs; ++i) rows[i] = T::load(tile + i * RowTiles::rows);
  T::transpose(rows);
  for (int64_t i = 0; i < RowTiles::rows; ++i) T::store(tile + i * tile_outputs, rows[i]);
  for (int64_t m = 0; m < count; ++m) {
    float* sums = job.sums + job.row[a + m] * job.hidden_size + begin;
    const float* values = tile + m * tile_outputs;
    const float weight = job.weight[a + m];
    if (num_outputs == tile_outputs) {
      for (int64_t i = 0; i < tile_outputs; ++i) sums[i] += weight * values[i];
    } else {
      for (int64_t i = 0; i < num_outputs; ++i) sums[i] += weight * values[i];
    }
  }
}

// One expert's part of vector_outer, if its rows are packed.
template <class T>
void tiled_outer(const Job& job, const ExpertRows& expert, int64_t begin, int64_t end, Scratch& scratch) {
  const int64_t num_pairs = rounded_up(end - begin, pair_outputs) / pair_outputs;
  for_each_tile_block(expert.inner_tiles, [&](int64_t first, int64_t num_blocks) {
    const TileSums sums = {scratch.tile_sums, num_pairs, num_blocks};
    TileProjection<T>(&expert.down, 1, begin, end, job.intermediate_size, expert.inner_tiles, first, sums,
                      scratch.kept).compute();
    for (int64_t t = 0; t < num_pairs * num_blocks * 2; ++t) {
      const int64_t pair = t / 2 / num_blocks, block = t / 2 % num_blocks, half = t % 2;
      const int64_t n = begin + pair * pair_outputs + half * tile_outputs;
      if (n >= end) continue;
      float* tile = sums.at(0, pair, block) + half * tile_floats;
      add_tile_bias(expert.down, n, end, tile);
      const int64_t row = (first + block) * RowTiles::rows;
      add_tile<T>(job, tile, expert.first + row, smaller(expert.count - row, RowTiles::rows), n,
                  smaller(end - n, tile_outputs));
    }
  });
}

}  // namespace
}  // namespace fiddler
