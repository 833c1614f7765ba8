// AVX512_BF16: vdpbf16ps multiplies pairs of bfloat16 and adds them to float32. It reads denormals as 0.
#pragma once

#include "tiers/avx512.h"

namespace fiddler {
namespace {

struct Avx512Bf16 : Avx512 {
  using Operand = Bf16;
  static constexpr int pair = 2;

  // A vector is 16 pairs, of consecutive inputs in the lanes of one float32.
  static Vector load_weights(const Bf16* from) { return _mm512_loadu_ps(reinterpret_cast<const float*>(from)); }
  static Vector load_operand(const Bf16* from) { return _mm512_loadu_ps(reinterpret_cast<const float*>(from)); }
  static Vector broadcast(const Bf16* from) {
    int both;
    std::memcpy(&both, from, sizeof both);
    return _mm512_castsi512_ps(_mm512_set1_epi32(both));
  }
  static Vector dot(Vector sum, Vector weights, Vector x) {
    return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)x);
  }
};

}  // namespace
}  // namespace fiddler
