#include "attention/vector_attention.h"
#include "tiers/avx2.h"

namespace fiddler {
namespace {

struct AttentionAvx2 : Avx2 {
  // Sixteen values: those of even places, and those of odd ones.
  static void load_pair(const Bf16* from, Vector* to) {
    const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    to[0] = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
    to[1] = _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  static void load_pair(const Fp32* from, Vector* to) {
    to[0] = load_weights(from);
    to[1] = load_weights(from + width);
  }

  // The sum of each vector's lanes.
  static void add_lanes(const Vector (&sums)[8], float* to) {
    const Vector low = four(sums), high = four(sums + 4);
    const Vector first = _mm256_permute2f128_ps(low, high, 0x20), second = _mm256_permute2f128_ps(low, high, 0x31);
    store(to, _mm256_add_ps(first, second));
  }
  template <int Count>
  static void add_lanes(const Vector (&sums)[Count], float* to) {
    for (int i = 0; i < Count; ++i) to[i] = sum(sums[i]);
  }

 private:
  // Lane i of each half: the sum of that half of vector i.
  static Vector four(const Vector* sums) {
    return _mm256_hadd_ps(_mm256_hadd_ps(sums[0], sums[1]), _mm256_hadd_ps(sums[2], sums[3]));
  }
};

}  // namespace

extern const AttentionOps attention_avx2[];
const AttentionOps attention_avx2[] = {vector_attention<AttentionAvx2, Fp32>, vector_attention<AttentionAvx2, Bf16>};
}  // namespace fiddler
