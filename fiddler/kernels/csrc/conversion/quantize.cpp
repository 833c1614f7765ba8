// Quantises rows of a matrix to int8 or int4: what fiddler/convert/quantize.py specifies, with the same numbers.
//
// Sixteen groups are computed side by side, one in each lane, so that every lane adds in the order of the inputs
// whatever the CPU. The file is compiled without fused products, for the same reason. It is in one file for all tiers:
// the compiler makes of a vector what each tier has.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "abi.h"
#include "formats.h"

namespace fiddler {
namespace {

constexpr int64_t LANES = 16, GROUP = 32;
constexpr float TINY = 0x1p-100f;

using Vector = float __attribute__((vector_size(LANES * sizeof(float))));
using Mask = int32_t __attribute__((vector_size(LANES * sizeof(float))));

#define INLINE inline __attribute__((always_inline))

INLINE Vector select(Mask mask, Vector yes, Vector no) { return mask ? yes : no; }
INLINE Vector magnitude(Vector x) { return select(x < 0.0f, -x, x); }
INLINE Vector clamp(Vector x, float low, float high) {
  x = select(x < low, Vector{} + low, x);
  return select(x > high, Vector{} + high, x);
}

// To the nearest whole number, ties to even: adding 1.5 x 2^23 leaves no bits for fractions.
INLINE Vector round_even(Vector x) {
  constexpr float shift = 0x1.8p23f;
  return (x + shift) - shift;
}

INLINE uint16_t to_bf16(float value) { return static_cast<uint16_t>(bf16_bits(value)); }
INLINE float from_bf16(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

INLINE bool has_nan(Vector x) {
  for (int64_t lane = 0; lane < LANES; ++lane)
    if (std::isnan(x[lane])) return true;
  return false;
}

// The scales of sixteen groups [GROUP][LANES]; a lane of which all weights are below TINY gets 1.
INLINE void search_scales(const Vector* weights, uint16_t* scales) {
  Vector largest{}, most{};
  for (int64_t i = 0; i < GROUP; ++i) {
    const Vector size = magnitude(weights[i]);
    largest = select(size > most, weights[i], largest);
    most = select(size > most, size, most);
  }
  const Mask is_zero = most < TINY;
  largest = select(is_zero, Vector{} + 1.0f, largest);
  Vector unit[GROUP], importance[GROUP], sum{};
  for (int64_t i = 0; i < GROUP; ++i) {
    unit[i] = weights[i] / largest;
    importance[i] = unit[i] * unit[i];
    sum += importance[i];
  }
  const Vector mean = sum * (1.0f / GROUP);
  for (int64_t i = 0; i < GROUP; ++i) importance[i] += mean;
  Vector best = Vector{} - 1.0f, scale = Vector{} + 1.0f;
  for (const float near : {-8.0f, 7.0f}) {
    for (int step = -3; step <= 3; ++step) {
      const float candidate = near + 0.25f * static_cast<float>(step);
      Vector products{}, norms{};
      for (int64_t i = 0; i < GROUP; ++i) {
        const Vector code = clamp(round_even(unit[i] * candidate), -8.0f, 7.0f);
        const Vector weighted = importance[i] * code;
        products += weighted * unit[i];
        norms += weighted * code;
      }
      const Vector gain = products * products / norms;
      scale = select(gain > best, products / norms, scale);
      best = select(gain > best, gain, best);
    }
  }
  scale = select(is_zero, Vector{} + 1.0f, scale * largest);
  for (int64_t lane = 0; lane < LANES; ++lane) scales[lane] = to_bf16(scale[lane]);
}

// One row; false if a weight is not finite.
template <class Stored>
INLINE bool row_to_int4(const Stored* row, int64_t inputs, uint8_t* codes, uint16_t* scales) {
  const int64_t groups = inputs / GROUP;
  Vector worst{};
  for (int64_t begin = 0; begin < groups; begin += LANES) {
    const int64_t lanes = std::min(LANES, groups - begin);
    Vector weights[GROUP]{};
    auto* const numbers = reinterpret_cast<float*>(weights);
    for (int64_t lane = 0; lane < lanes; ++lane)
      for (int64_t i = 0; i < GROUP; ++i) numbers[i * LANES + lane] = to_float(&row[(begin + lane) * GROUP + i]);
    uint16_t found[LANES];
    search_scales(weights, found);
    std::memcpy(scales + begin, found, static_cast<size_t>(lanes) * sizeof *found);
    Vector divisor;
    for (int64_t lane = 0; lane < LANES; ++lane) divisor[lane] = from_bf16(found[lane]);
    for (int64_t i = 0; i < GROUP; ++i) {
      worst += weights[i] * 0.0f;  // not a number if one is not finite
      weights[i] = clamp(round_even(weights[i] / divisor), -8.0f, 7.0f) + 8.0f;
    }
    for (int64_t lane = 0; lane < lanes; ++lane) {
      uint8_t* const to = codes + (begin + lane) * (GROUP / 2);
      for (int64_t i = 0; i < GROUP / 2; ++i) {
        const auto low = static_cast<int>(numbers[2 * i * LANES + lane]);
        const auto high = static_cast<int>(numbers[(2 * i + 1) * LANES + lane]);
        to[i] = static_cast<uint8_t>(low | high << 4);
      }
    }
  }
  return !has_nan(worst);
}

// Sixteen weights of a row from `begin` on, or as many as there are and zeros.
template <class Stored>
INLINE Vector load(const Stored* row, int64_t begin, int64_t inputs) {
  Vector weights{};
  const int64_t lanes = std::min(LANES, inputs - begin);
  for (int64_t lane = 0; lane < lanes; ++lane) weights[lane] = to_float(&row[begin + lane]);
  return weights;
}

template <class Stored>
INLINE bool row_to_int8(const Stored* row, int64_t inputs, uint8_t* codes, uint16_t* scales) {
  Vector most{}, worst{};
  for (int64_t begin = 0; begin < inputs; begin += LANES) {
    const Vector weights = load(row, begin, inputs);
    worst += weights * 0.0f;
    const Vector size = magnitude(weights);
    most = select(size > most, size, most);
  }
  if (has_nan(worst)) return false;
  float largest = 0.0f;
  for (int64_t lane = 0; lane < LANES; ++lane) largest = std::max(largest, most[lane]);
  *scales = to_bf16(largest < TINY ? 1.0f : largest / 127.0f);
  const float divisor = from_bf16(*scales);
  for (int64_t begin = 0; begin < inputs; begin += LANES) {
    const Vector rounded = clamp(round_even(load(row, begin, inputs) / divisor), -127.0f, 127.0f);
    const int64_t lanes = std::min(LANES, inputs - begin);
    for (int64_t lane = 0; lane < lanes; ++lane)
      codes[begin + lane] = static_cast<uint8_t>(static_cast<int8_t>(rounded[lane]));
  }
  return true;
}

struct Rows {
  const void* weights;
  int64_t row_stride, rows, inputs;
  int32_t bits;
  uint8_t* codes;
  uint16_t* scales;
};

template <class Stored>
INLINE bool quantize_rows(const Rows& work) {
  const bool is_int4 = work.bits == 4;
  const int64_t groups = is_int4 ? work.inputs / GROUP : 1;
  const int64_t row_bytes = is_int4 ? work.inputs / 2 : work.inputs;
  // adjacent rows of groups are one long row of groups, which fills all lanes
  if (is_int4 && work.row_stride == work.inputs)
    return row_to_int4(static_cast<const Stored*>(work.weights), work.rows * work.inputs, work.codes, work.scales);
  for (int64_t row = 0; row < work.rows; ++row) {
    const Stored* const weights = static_cast<const Stored*>(work.weights) + row * work.row_stride;
    uint8_t* const codes = work.codes + row * row_bytes;
    uint16_t* const scales = work.scales + row * groups;
    if (!(is_int4 ? row_to_int4(weights, work.inputs, codes, scales)
                  : row_to_int8(weights, work.inputs, codes, scales)))
      return false;
  }
  return true;
}

INLINE bool quantize_by_dtype(const Rows& work, int32_t dtype) {
  switch (dtype) {
    case FIDDLER_FLOAT32: return quantize_rows<Fp32>(work);
    case FIDDLER_BFLOAT16: return quantize_rows<Bf16>(work);
    default: return quantize_rows<Fp16>(work);
  }
}

bool quantize_anywhere(const Rows& work, int32_t dtype) { return quantize_by_dtype(work, dtype); }

#if defined(__x86_64__)
__attribute__((target("avx2"))) bool quantize_avx2(const Rows& work, int32_t dtype) {
  return quantize_by_dtype(work, dtype);
}
__attribute__((target("avx2,avx512f,avx512bw,avx512dq,avx512vl"))) bool quantize_avx512(const Rows& work,
                                                                                         int32_t dtype) {
  return quantize_by_dtype(work, dtype);
}
#endif

bool quantize(const Rows& work, int32_t dtype) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return quantize_avx512(work, dtype);
  if (__builtin_cpu_supports("avx2")) return quantize_avx2(work, dtype);
#endif
  return quantize_anywhere(work, dtype);
}

}  // namespace
}  // namespace fiddler

extern "C" int32_t fiddler_quantize(const void* weights, int32_t dtype, int64_t row_stride, int64_t rows,
                                    int64_t inputs, int32_t bits, uint8_t* codes, uint16_t* scales) {
  if (!weights || !codes || !scales) return FIDDLER_NULL_POINTER;
  if (dtype < FIDDLER_FLOAT32 || dtype > FIDDLER_FLOAT16) return FIDDLER_BAD_DTYPE;
  if ((bits != 4 && bits != 8) || rows < 0 || inputs < 1 || (bits == 4 && inputs % fiddler::GROUP))
    return FIDDLER_BAD_SIZE;
  return fiddler::quantize({weights, row_stride, rows, inputs, bits, codes, scales}, dtype) ? FIDDLER_OK
                                                                                            : FIDDLER_NOT_FINITE;
}
