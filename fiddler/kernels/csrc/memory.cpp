// Measures how fast memory is read, and copies weights onto their nodes. Nothing is computed here.

#include <cstring>
#include <new>

#include "abi.h"
#include "pool.h"

namespace {

constexpr int64_t line_bytes = 64;
constexpr int64_t max_streams = 16;
constexpr int64_t prefetch_bytes = 2048;
constexpr int64_t copy_bytes = 2 << 20;  // a huge page

struct Line {
  uint64_t words[8];
};

// Reads a range as `Streams` streams of equal length.
template <int Streams>
uint64_t read_streams(const unsigned char* data, int64_t bytes) {
  using Words = uint64_t __attribute__((vector_size(16), aligned(1), may_alias));
  const int64_t part = bytes / Streams / line_bytes * line_bytes;
  Words sums[4] = {};
  for (int64_t i = 0; i < part; i += line_bytes) {
#pragma GCC unroll 16
    for (int64_t s = 0; s < Streams; ++s) {
      const unsigned char* line = data + s * part + i;
      __builtin_prefetch(line + prefetch_bytes);
      for (int64_t w = 0; w < 4; ++w) sums[w] ^= *reinterpret_cast<const Words*>(line + w * 16);
    }
  }
  const Words sum = sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
  return sum[0] ^ sum[1];
}

uint64_t read_range(const unsigned char* data, int64_t bytes, int32_t streams) {
  switch (streams) {
    case 1:
      return read_streams<1>(data, bytes);
    case 2:
      return read_streams<2>(data, bytes);
    case 4:
      return read_streams<4>(data, bytes);
    case 8:
      return read_streams<8>(data, bytes);
    default:
      return read_streams<16>(data, bytes);
  }
}

}  // namespace

extern "C" {

fiddler_pool* fiddler_pool_create(const int32_t* cpus, const int32_t* nodes, int32_t count, int32_t spin_microseconds) {
  if (!cpus || !nodes || count < 1) return nullptr;
  try {
    return new fiddler_pool(cpus, nodes, count, spin_microseconds);
  } catch (...) {
    return nullptr;  // the system refuses more threads or memory
  }
}

void fiddler_pool_destroy(fiddler_pool* pool) { delete pool; }

void fiddler_pool_lock(fiddler_pool* pool) { pool->turn.lock(); }

void fiddler_pool_unlock(fiddler_pool* pool) { pool->turn.unlock(); }

uint64_t fiddler_read(fiddler_pool* pool, const void* data, int64_t bytes, int32_t streams) {
  if (!pool || !data || bytes <= 0 || !pool->enter()) return 0;
  std::atomic<uint64_t> sum{0};
  // in pieces that threads take as they finish, so that a thread that is delayed does not delay the measurement
  constexpr int64_t piece = 4 << 20;
  std::atomic<int64_t> next{0};
  pool->run([&](int) {
    for (int64_t begin; (begin = next.fetch_add(piece)) < bytes;) {
      sum ^= read_range(static_cast<const unsigned char*>(data) + begin, begin + piece < bytes ? piece : bytes - begin,
                        streams);
    }
  });
  pool->leave();
  return sum;
}

int32_t fiddler_copy(fiddler_pool* pool, void* const* to, const void* const* from, const int64_t* bytes,
                     const int32_t* nodes, int64_t count) {
  if (!pool || !to || !from || !bytes || !nodes) return FIDDLER_NULL_POINTER;
  if (!pool->enter()) return FIDDLER_BUSY;
  auto* next = new (std::nothrow) std::atomic<int64_t>[static_cast<size_t>(count)]();
  if (next) {
    pool->run([&](int index) {
      for (int64_t i = 0; i < count; ++i) {
        if (nodes[i] != pool->node(index)) continue;
        for (int64_t begin; (begin = next[i].fetch_add(copy_bytes)) < bytes[i];) {
          const int64_t length = begin + copy_bytes < bytes[i] ? copy_bytes : bytes[i] - begin;
          std::memcpy(static_cast<char*>(to[i]) + begin, static_cast<const char*>(from[i]) + begin,
                      static_cast<size_t>(length));
        }
      }
    });
    delete[] next;
  }
  pool->leave();
  return next ? FIDDLER_OK : FIDDLER_NO_MEMORY;
}
}
