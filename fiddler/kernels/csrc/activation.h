// Activations over a block of values, in loops that a compiler vectorises with the including file's flags.
#pragma once

#include <cmath>

#include "job.h"

namespace fiddler {
namespace {

// e^x within 2 units in the last place, without a branch; inf above 88.73, NaN for NaN.
inline float fast_exp(float x) {
  const float clamped = x < -104.0f ? -104.0f : x > 89.0f ? 89.0f : x;
  constexpr float shift = 12582912.0f;  // 1.5 x 2^23: adding it rounds to an integer in the low bits
  const float shifted = clamped * 1.44269504f + shift;
  const int32_t n = std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(shift);
  const float whole = shifted - shift;
  const float r = (clamped - whole * 0.693145752f) - whole * 1.42860677e-6f;
  float p = 1.98412698e-4f;
  p = p * r + 1.38888889e-3f;
  p = p * r + 8.33333333e-3f;
  p = p * r + 4.16666667e-2f;
  p = p * r + 1.66666667e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  // 2^n in two factors, because n may be outside the exponents of normal numbers
  const auto power = [](int32_t e) { return std::bit_cast<float>(static_cast<uint32_t>(e + 127) << 23); };
  const int32_t half = n >> 1;
  return p * power(half) * power(n - half);
}

struct FastMath {
  static float exp(float x) { return fast_exp(x); }
};
struct ExactMath {
  static float exp(float x) { return static_cast<float>(std::exp(static_cast<double>(x))); }
};

template <class Math>
inline float gelu_tanh(float x) {
  // x * (1 + tanh(y)) / 2 is x * sigmoid(2y)
  const float y = 0.7978845608f * (x + 0.044715f * x * x * x);
  return x / (1.0f + Math::exp(-2.0f * y));
}

template <class Function, class Operand>
inline void combine(const float* gate, const float* up, int64_t count, Operand* out, Function function) {
  if (gate) {
    for (int64_t i = 0; i < count; ++i) from_float(function(gate[i]) * up[i], out + i);
  } else {
    for (int64_t i = 0; i < count; ++i) from_float(function(up[i]), out + i);
  }
}

template <class Math, class Operand>
inline void combine_clamped(const Job& job, const float* gate, const float* up, int64_t count, Operand* out) {
  for (int64_t i = 0; i < count; ++i) {
    const float g = gate[i] > job.limit ? job.limit : gate[i];
    const float u = up[i] > job.limit ? job.limit : up[i] < -job.limit ? -job.limit : up[i];
    from_float((u + 1.0f) * (g / (1.0f + Math::exp(-job.alpha * g))), out + i);
  }
}

template <class Math, class Operand>
inline void combine_clamped_silu(float limit, const float* gate, const float* up, int64_t count, Operand* out) {
  for (int64_t i = 0; i < count; ++i) {
    const float g = gate[i] > limit ? limit : gate[i];
    const float u = up[i] > limit ? limit : up[i] < -limit ? -limit : up[i];
    from_float(g / (1.0f + Math::exp(-g)) * u, out + i);
  }
}

inline void multiply(const float* factor, int64_t count, float* values) {
  for (int64_t i = 0; i < count; ++i) values[i] *= factor[i];
}

// out = activation(gate) * up, or activation(up) if gate is null.
template <class Math, class Operand>
void activate(const Job& job, const float* gate, const float* up, int64_t count, Operand* out) {
  switch (job.activation) {
    case FIDDLER_SILU:
      return combine(gate, up, count, out, [](float x) { return x / (1.0f + Math::exp(-x)); });
    case FIDDLER_GELU_ERF:
      return combine(gate, up, count, out, [](float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678f)); });
    case FIDDLER_GELU_TANH:
      return combine(gate, up, count, out, [](float x) { return gelu_tanh<Math>(x); });
    case FIDDLER_RELU:
      return combine(gate, up, count, out, [](float x) { return x < 0.0f ? 0.0f : x; });
    case FIDDLER_RELU_SQUARED:
      return combine(gate, up, count, out, [](float x) { return x < 0.0f ? 0.0f : x * x; });
    case FIDDLER_CLAMPED_SWIGLU:
      return combine_clamped<Math>(job, gate, up, count, out);
    case FIDDLER_CLAMPED_SILU:
      return combine_clamped_silu<Math>(job.limit, gate, up, count, out);
    default:
      return;  // refused by fiddler_run
  }
}

}  // namespace
}  // namespace fiddler
