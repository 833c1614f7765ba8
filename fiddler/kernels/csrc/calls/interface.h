// What the functions of abi.h share: memory that is kept from call to call, and checks of what callers give.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

#include "formats.h"
#include "job.h"

namespace fiddler {

constexpr int64_t min_values_to_share = 65536;  // of rows that one thread converts alone

inline int64_t element_bytes(int32_t dtype) { return dtype == FIDDLER_FLOAT32 ? 4 : 2; }

// A buffer that only grows, aligned to cache lines, and not initialised.
class Buffer {
 public:
  ~Buffer() { ::operator delete[](data_, std::align_val_t{64}); }
  Buffer() = default;
  Buffer(const Buffer&) : Buffer() {}

  unsigned char* reserve(int64_t bytes) {
    if (bytes > capacity_) {
      ::operator delete[](data_, std::align_val_t{64});
      data_ = nullptr;
      capacity_ = 0;
      data_ = static_cast<unsigned char*>(::operator new[](static_cast<size_t>(bytes), std::align_val_t{64}));
      capacity_ = bytes;
    }
    return data_;
  }

 private:
  unsigned char* data_ = nullptr;
  int64_t capacity_ = 0;
};

// sum[i] = one[i] + other[i] of bfloat16, rounded. The sum may be one of them.
inline void add(const void* one, const void* other, void* sum, int64_t count) {
  const auto *a = static_cast<const Bf16*>(one), *b = static_cast<const Bf16*>(other);
  for (int64_t i = 0; i < count; ++i) from_float(to_float(a + i) + to_float(b + i), static_cast<Bf16*>(sum) + i);
}

// A thread's memory for blocks of projections, with a number that no other message has.
Scratch& scratch(uint64_t message);

uint64_t next_message();

// One matrix of a projection.
Matrix matrix_of(const fiddler_projection& projection, int64_t index);

// Converts bfloat16 values [begin, end) to float32. No other conversion is needed, since all else is float32 already.
void widen(const void* from, float* to, int64_t begin, int64_t end);

bool is_aligned(const void* pointer, int64_t bytes);

// Whether an address is missing among those of a projection of `count` matrices.
bool is_null(const fiddler_projection& projection, int64_t count);

// Whether a projection has what its codes need to become weights, or that it has none of it.
int32_t check_coding(const fiddler_projection& projection, bool is_coded);

}  // namespace fiddler
