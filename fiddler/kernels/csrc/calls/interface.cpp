#include "calls/interface.h"

#include <atomic>

namespace fiddler {

Scratch& scratch(uint64_t message) {
  thread_local Buffer buffer;
  Scratch& memory = *reinterpret_cast<Scratch*>(buffer.reserve(sizeof(Scratch)));
  memory.message = message;
  return memory;
}

uint64_t next_message() {
  static std::atomic<uint64_t> messages = 0;
  return ++messages;
}

Matrix matrix_of(const fiddler_projection& projection, int64_t index) {
  Coding coding = {};
  if (projection.scales) {
    coding = {static_cast<const unsigned char*>(projection.scales[index]),
              projection.zeros ? projection.zeros[index] : nullptr,
              projection.multipliers[index],
              projection.scales_stride,
              projection.group_inputs,
              projection.group_outputs,
              projection.first_output,
              projection.scale_kind};
  }
  return {static_cast<const unsigned char*>(projection.weights[index]),
          projection.biases ? projection.biases[index] : nullptr, projection.out_stride, projection.in_stride, coding};
}

void widen(const void* from, float* to, int64_t begin, int64_t end) {
  const auto* stored = static_cast<const Bf16*>(from);
  for (int64_t i = begin; i < end; ++i) to[i] = to_float(stored + i);
}

bool is_aligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) == 0;
}

bool is_null(const fiddler_projection& projection, int64_t count) {
  if (!projection.weights) return true;
  for (int64_t i = 0; i < count; ++i) {
    if (!projection.weights[i] || (projection.biases && !projection.biases[i])) return true;
  }
  return false;
}

int32_t check_coding(const fiddler_projection& projection, bool is_coded) {
  if (!projection.weights) return FIDDLER_OK;
  if (!is_coded) return projection.scales ? FIDDLER_BAD_DTYPE : FIDDLER_OK;
  if (!projection.scales || !projection.multipliers) return FIDDLER_NULL_POINTER;
  if (projection.scale_kind < 0 || projection.scale_kind >= FIDDLER_NUM_SCALES) return FIDDLER_BAD_DTYPE;
  const bool sizes = projection.group_inputs > 0 && projection.group_outputs > 0 && projection.first_output >= 0;
  return sizes && projection.in_stride == 1 ? FIDDLER_OK : FIDDLER_BAD_SIZE;
}

}  // namespace fiddler
