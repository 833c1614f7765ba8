#include "tiers.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fiddler {

extern const Ops bf16_scalar, fp16_scalar, fp32_scalar;
#if defined(__x86_64__)
extern const Ops bf16_avx2, fp16_avx2, fp32_avx2;
extern const Ops bf16_avx512, fp16_avx512, fp32_avx512;
extern const Ops bf16_avx512bf16, bf16_amx;
#endif

namespace {

#if defined(__x86_64__)

bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (amx_bf16 | amx_tile)) != (amx_bf16 | amx_tile)) return false;
#if defined(__linux__)
  // tile registers are large, so that Linux gives them only to processes that ask
  constexpr long arch_req_xcomp_perm = 0x1023, xfeature_xtiledata = 18;
  return syscall(SYS_arch_prctl, arch_req_xcomp_perm, xfeature_xtiledata) == 0;
#else
  return false;
#endif
}

// The compiler's run-time library asks the operating system too, whether it saves the registers.
bool probe(int32_t tier) {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f");
  const bool avx512_bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  switch (tier) {
    case FIDDLER_SCALAR:
      return true;
    case FIDDLER_AVX2: {
      unsigned a = 0, b = 0, c = 0, d = 0;
      return avx2 && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
    }
    case FIDDLER_AVX512:
      return avx512;
    case FIDDLER_AVX512_BF16:
      return avx512_bf16;
    case FIDDLER_AMX_BF16:
      return avx512_bf16 && has_amx();
    default:
      return false;
  }
}

const Ops* vector_ops_for(int32_t tier, int32_t weight_dtype, bool bf16_products) {
  static const Ops* const avx2[] = {&fp32_avx2, &bf16_avx2, &fp16_avx2};
  static const Ops* const avx512[] = {&fp32_avx512, &bf16_avx512, &fp16_avx512};
  if (tier == FIDDLER_AMX_BF16 && bf16_products) return &bf16_amx;
  if (tier == FIDDLER_AVX512_BF16 && bf16_products) return &bf16_avx512bf16;
  return (tier == FIDDLER_AVX2 ? avx2 : avx512)[weight_dtype];
}

#else

bool probe(int32_t tier) { return tier == FIDDLER_SCALAR; }
const Ops* vector_ops_for(int32_t, int32_t, bool) { return nullptr; }

#endif

}  // namespace

bool has_tier(int32_t tier) {
  static const bool known[FIDDLER_NUM_TIERS] = {probe(0), probe(1), probe(2), probe(3), probe(4)};
  return tier >= 0 && tier < FIDDLER_NUM_TIERS && known[tier];
}

const Ops* ops_for(int32_t tier, int32_t weight_dtype, int32_t hidden_dtype, bool rows_are_regular) {
  static const Ops* const scalar[] = {&fp32_scalar, &bf16_scalar, &fp16_scalar};
  if (weight_dtype < 0 || weight_dtype > FIDDLER_FLOAT16) return nullptr;
  if (tier == FIDDLER_SCALAR) return scalar[weight_dtype];
  const bool bf16 = weight_dtype == FIDDLER_BFLOAT16 && hidden_dtype == FIDDLER_BFLOAT16;
  return vector_ops_for(tier, weight_dtype, bf16 && rows_are_regular);
}

}  // namespace fiddler

extern "C" int32_t fiddler_has_tier(int32_t tier) { return fiddler::has_tier(tier); }
