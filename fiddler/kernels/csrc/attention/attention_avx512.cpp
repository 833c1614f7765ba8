#include "attention/vector_attention.h"
#include "tiers/avx512.h"

namespace fiddler {
namespace {

struct AttentionAvx512 : Avx512 {
  // Thirty-two values: those of even places, and those of odd ones.
  static void load_pair(const Bf16* from, Vector* to) {
    const __m512i pairs = _mm512_loadu_si512(from);
    to[0] = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    to[1] = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  static void load_pair(const Fp32* from, Vector* to) {
    to[0] = load_weights(from);
    to[1] = load_weights(from + width);
  }

  // The sum of each vector's lanes.
  template <int Count>
  static void add_lanes(const Vector (&sums)[Count], float* to) {
    for (int i = 0; i < Count; ++i) to[i] = sum(sums[i]);
  }
};

}  // namespace

extern const AttentionOps attention_avx512[];
const AttentionOps attention_avx512[] = {vector_attention<AttentionAvx512, Fp32>,
                                         vector_attention<AttentionAvx512, Bf16>};
}  // namespace fiddler
