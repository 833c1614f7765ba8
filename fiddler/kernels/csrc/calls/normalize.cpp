// fiddler_normalize: the norm before each part of a layer, of so few rows that calling PyTorch takes longer.

#include <cmath>
#include <initializer_list>

#include "abi.h"
#include "calls/interface.h"
#include "formats.h"

namespace fiddler {
namespace {

// In lanes, which a compiler turns into vectors, so that it need not keep one order of the sums.
float sum_of_squares(const Bf16* values, int64_t size) {
  constexpr int64_t lanes = 16;
  float sums[lanes] = {};
  int64_t i = 0;
  for (; i + lanes <= size; i += lanes) {
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const float value = to_float(values + i + lane);
      sums[lane] += value * value;
    }
  }
  for (; i < size; ++i) sums[i % lanes] += to_float(values + i) * to_float(values + i);
  float sum = 0.0f;
  for (float lane : sums) sum += lane;
  return sum;
}

float rounded(float value) { return std::bit_cast<float>(bf16_bits(value) << 16); }

template <bool RoundsFirst>
void normalize(const Bf16* input, const Bf16* weight, Bf16* output, int64_t size, float factor) {
  for (int64_t i = 0; i < size; ++i) {
    const float value = to_float(input + i) * factor;
    from_float((RoundsFirst ? rounded(value) : value) * to_float(weight + i), output + i);
  }
}

}  // namespace
}  // namespace fiddler

extern "C" int32_t fiddler_normalize(int64_t rows, int64_t size, const void* input, const void* weight, void* output,
                                     float epsilon, int32_t rounds_first) {
  using namespace fiddler;
  if (rows < 0 || size < 1) return FIDDLER_BAD_SIZE;
  if (rows == 0) return FIDDLER_OK;
  for (const void* pointer : {input, weight, static_cast<const void*>(output)}) {
    if (!pointer) return FIDDLER_NULL_POINTER;
    if (!is_aligned(pointer, 2)) return FIDDLER_MISALIGNED;
  }
  const auto* weights = static_cast<const Bf16*>(weight);
  for (int64_t r = 0; r < rows; ++r) {
    const auto* from = static_cast<const Bf16*>(input) + r * size;
    auto* to = static_cast<Bf16*>(output) + r * size;
    const float factor = 1.0f / std::sqrt(sum_of_squares(from, size) / static_cast<float>(size) + epsilon);
    if (rounds_first) {
      normalize<true>(from, weights, to, size, factor);
    } else {
      normalize<false>(from, weights, to, size, factor);
    }
  }
  return FIDDLER_OK;
}
