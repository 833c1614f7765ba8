// AMX_BF16: up to three hidden rows as in AVX512_BF16; more are multiplied in tiles of 16 outputs x 16 rows x 32
// inputs.
#pragma once

#include <atomic>

#include "tiers/avx512bf16.h"
#include "projections/tiles.h"

namespace fiddler {
namespace {

// Eight tiles of 16 rows of 64 bytes.
struct TileLayout {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileLayout) == 64);
alignas(64) constexpr TileLayout tile_layout;

struct AmxBf16 : Avx512Bf16 {
  using Exact = AmxBf16;
  static constexpr bool has_tiles = true;
  static constexpr int64_t min_panel_rows = 4;  // with fewer, vdpbf16ps already keeps up with memory
  static constexpr double rows_per_read = 64;

  // Two tiles of weights x one or two of hidden rows: tiles 0 to 3 are sums, 4 and 5 weights, 6 and 7 hidden rows.
  template <bool Two>
  static void multiply_tiles(const TileProduct& p, std::bool_constant<Two>) {
    constexpr int64_t pitch = 64, next = tile_floats;
    const unsigned char *low = p.weights, *high = low + p.second, *rows = p.rows, *more_rows = p.more_rows;
    unsigned char* keep = p.keep;
    // GCC's intrinsics do not declare that tiles are loaded from memory: this keeps stores from moving past the loads
    std::atomic_signal_fence(std::memory_order_seq_cst);
    load_sums<Two>(p.sums, p.accumulate);
    for (int64_t step = 0; step < p.steps; ++step) {
      p.ahead->fetch(p.lines);
      _tile_loadd(4, low, p.row_bytes);
      _tile_loadd(6, rows, pitch);
      _tile_loadd(5, high, p.row_bytes);
      if (keep) {
        _tile_stored(4, keep, pitch);
        _tile_stored(5, keep + RowTiles::bytes, pitch);
        keep += pair_bytes;
      }
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 5, 6);
      if constexpr (Two) {
        _tile_loadd(7, more_rows, pitch);
        _tile_dpbf16ps(2, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
        more_rows += RowTiles::bytes;
      }
      low += p.step_bytes;
      high += p.step_bytes;
      rows += RowTiles::bytes;
    }
    _tile_stored(0, p.sums, pitch);
    _tile_stored(1, p.sums + next, pitch);
    if constexpr (Two) {
      _tile_stored(2, p.sums + 2 * next, pitch);
      _tile_stored(3, p.sums + 3 * next, pitch);
    }
  }

  static void begin_tiles() { _tile_loadconfig(&tile_layout); }

  // Tiles that are in use make every switch to another thread slower.
  static void end_tiles() { _tile_release(); }

 private:
  template <bool Two>
  static void load_sums(const float* from, bool accumulate) {
    constexpr int64_t pitch = 64, next = tile_floats;
    if (accumulate) {
      _tile_loadd(0, from, pitch);
      _tile_loadd(1, from + next, pitch);
      if constexpr (Two) {
        _tile_loadd(2, from + 2 * next, pitch);
        _tile_loadd(3, from + 3 * next, pitch);
      }
    } else {
      _tile_zero(0);
      _tile_zero(1);
      if constexpr (Two) {
        _tile_zero(2);
        _tile_zero(3);
      }
    }
  }
};

}  // namespace
}  // namespace fiddler
