// AMX_BF16: as AVX512_BF16, but panels are multiplied in tiles of 16 hidden rows x 16 outputs x 32 inputs.
#pragma once

#include "job.h"
#include "tier_avx512bf16.h"

namespace fiddler {
namespace {

struct AmxBf16 : Avx512Bf16 {
  static constexpr bool has_tiles = true;

  // results[m][0, 64) (+)= x[m][first, last) x panel, whose rows of pairs are just what tdpbf16ps takes as its second
  // operand. `gathered` holds the hidden rows next to each other, since a tile's rows lie at equal distances.
  static void multiply_panel(const float* panel, const Bf16* const* x, int64_t count, int64_t first, int64_t last,
                             float* results, float* gathered) {
    constexpr int64_t tile_bytes = 64, tile_inputs = 32, block_rows = 32;
    constexpr int64_t x_pitch = panel_inputs * int64_t{sizeof(Bf16)}, panel_pitch = panel_outputs * 4;
    auto* rows = reinterpret_cast<unsigned char*>(gathered);
    const auto used_bytes = static_cast<size_t>((last - first) * int64_t{sizeof(Bf16)});
    const int64_t padded = (count + block_rows - 1) / block_rows * block_rows;
    for (int64_t m = 0; m < padded; ++m) {
      unsigned char* row = rows + m * x_pitch;
      if (m < count) std::memcpy(row, x[m] + first, used_bytes);
      const size_t from = m < count ? used_bytes : 0;
      std::memset(row + from, 0, static_cast<size_t>(x_pitch) - from);
    }
    configure();
    for (int64_t m = 0; m < padded; m += block_rows) {
      const unsigned char* low = rows + m * x_pitch;
      const unsigned char* high = low + 16 * x_pitch;
      for (int64_t n = 0; n < panel_outputs; n += 32) {
        float* to = results + m * panel_outputs + n;
        load_sums(to, first > 0);
        for (int64_t k = 0; k < last - first; k += tile_inputs) {
          const float* weights = panel + k / pair * panel_outputs + n;
          _tile_loadd(4, low + k * int64_t{sizeof(Bf16)}, x_pitch);
          _tile_loadd(5, high + k * int64_t{sizeof(Bf16)}, x_pitch);
          _tile_loadd(6, weights, panel_pitch);
          _tile_loadd(7, weights + 16, panel_pitch);
          _tile_dpbf16ps(0, 4, 6);
          _tile_dpbf16ps(1, 4, 7);
          _tile_dpbf16ps(2, 5, 6);
          _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, to, panel_pitch);
        _tile_stored(1, to + 16, panel_pitch);
        _tile_stored(2, to + 16 * panel_outputs, panel_pitch);
        _tile_stored(3, to + 16 * panel_outputs + 16, panel_pitch);
      }
    }
    // tiles in use make every switch to another thread dearer
    _tile_release();
    static_assert(tile_bytes == tile_inputs * sizeof(Bf16) && x_pitch * max_block_rows <= Scratch::panel_floats * 4);
  }

 private:
  static void load_sums(const float* from, bool accumulate) {
    constexpr int64_t pitch = panel_outputs * 4;
    if (accumulate) {
      _tile_loadd(0, from, pitch);
      _tile_loadd(1, from + 16, pitch);
      _tile_loadd(2, from + 16 * panel_outputs, pitch);
      _tile_loadd(3, from + 16 * panel_outputs + 16, pitch);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
  }

  // Eight tiles of 16 rows of 64 bytes.
  static void configure() {
    alignas(64) struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } layout;
    static_assert(sizeof layout == 64);
    _tile_loadconfig(&layout);
  }
};

}  // namespace
}  // namespace fiddler
