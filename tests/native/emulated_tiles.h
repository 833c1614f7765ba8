// AMX tiles in plain loops, so that the AMX tier can be tested on CPUs without tiles.
#pragma once

#include <immintrin.h>

#include <bit>
#include <cstdint>
#include <cstring>

namespace emulated {

struct Tile {
  unsigned char rows[16][64];
};
inline thread_local Tile tiles[8];

inline void load(int tile, const void* from, int64_t pitch) {
  for (int i = 0; i < 16; ++i) std::memcpy(tiles[tile].rows[i], static_cast<const char*>(from) + i * pitch, 64);
}

inline void store(int tile, void* to, int64_t pitch) {
  for (int i = 0; i < 16; ++i) std::memcpy(static_cast<char*>(to) + i * pitch, tiles[tile].rows[i], 64);
}

inline float bf16(const unsigned char* from) {
  uint16_t bits;
  std::memcpy(&bits, from, sizeof bits);
  return std::bit_cast<float>(uint32_t{bits} << 16);
}

// As in Intel's manual: sum[m][n] += a[m][2k] * b[k][2n] + a[m][2k + 1] * b[k][2n + 1]
inline void multiply(int sum, int a, int b) {
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 16; ++n) {
      float total;
      std::memcpy(&total, tiles[sum].rows[m] + n * 4, sizeof total);
      for (int k = 0; k < 16; ++k) {
        for (int half = 0; half < 2; ++half) {
          total += bf16(tiles[a].rows[m] + k * 4 + half * 2) * bf16(tiles[b].rows[k] + n * 4 + half * 2);
        }
      }
      std::memcpy(tiles[sum].rows[m] + n * 4, &total, sizeof total);
    }
  }
}

}  // namespace emulated

#undef _tile_loadd
#undef _tile_stored
#undef _tile_stream_loadd
#undef _tile_dpbf16ps
#undef _tile_zero
#undef _tile_loadconfig
#undef _tile_release
#define _tile_loadd(tile, from, pitch) emulated::load(tile, from, pitch)
#define _tile_stream_loadd(tile, from, pitch) emulated::load(tile, from, pitch)
#define _tile_stored(tile, to, pitch) emulated::store(tile, to, pitch)
#define _tile_dpbf16ps(sum, a, b) emulated::multiply(sum, a, b)
#define _tile_zero(tile) std::memset(&emulated::tiles[tile], 0, sizeof(emulated::Tile))
#define _tile_loadconfig(layout) static_cast<void>(layout)
#define _tile_release() static_cast<void>(0)
