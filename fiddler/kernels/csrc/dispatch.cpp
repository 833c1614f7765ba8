// The table of tiers: what each is called, which CPUs run it, and its code for each stored format.
//
// A new tier is a header in tiers/, a file for each format in instances/, its flags in CMakeLists.txt, and a row here.

#include "dispatch.h"

#include <array>
#include <iterator>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fiddler {

extern const Ops fp32_scalar, bf16_scalar, fp16_scalar;
extern const Ops coded_scalar[];
extern const AttentionOps attention_scalar[];
#if defined(__x86_64__)
extern const Ops fp32_avx2, bf16_avx2, fp16_avx2;
extern const Ops fp32_avx512, bf16_avx512, fp16_avx512;
extern const Ops bf16_avx512bf16;
extern const Ops bf16_amx;
extern const Ops coded_avx2[], coded_avx512[], coded_avx512bf16[], coded_amx[];
extern const Ops coded_bf16_avx2[], coded_bf16_avx512[];
extern const AttentionOps attention_avx2[], attention_avx512[];
#endif

namespace {

bool always() { return true; }

#if defined(__x86_64__)

// The compiler's run-time library also asks whether the operating system saves the registers.

bool has_avx2() {
  __builtin_cpu_init();
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d) &&
         (c & bit_F16C);
}

bool has_avx512() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx512f");
}

bool has_avx512_bf16() {
  return has_avx512() && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vbmi") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}

bool has_amx_bf16() {
  if (!has_avx512_bf16()) return false;
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

#endif

struct Tier {
  const char* name;
  bool (*runs_here)();
  const Ops* by_format[3];   // float32, bfloat16, float16: multiplies in float32, or more exactly
  const Ops* bf16_products;  // multiplies bfloat16 by bfloat16; null if the tier does not
  const Ops* by_code;        // of weights in 8 or 4 bits, likewise
  const Ops* bf16_by_code;
  const AttentionOps* attention;  // by dtype: float32, bfloat16
};

const Tier tiers[] = {
    {"scalar", always, {&fp32_scalar, &bf16_scalar, &fp16_scalar}, nullptr, coded_scalar, nullptr,
     attention_scalar},
#if defined(__x86_64__)
    {"avx2", has_avx2, {&fp32_avx2, &bf16_avx2, &fp16_avx2}, nullptr, coded_avx2, coded_bf16_avx2,
     attention_avx2},
    {"avx512", has_avx512, {&fp32_avx512, &bf16_avx512, &fp16_avx512}, nullptr, coded_avx512,
     coded_bf16_avx512, attention_avx512},
    {"avx512_bf16", has_avx512_bf16, {&fp32_avx512, &bf16_avx512, &fp16_avx512}, &bf16_avx512bf16,
     coded_avx512, coded_avx512bf16, attention_avx512},
    {"amx_bf16", has_amx_bf16, {&fp32_avx512, &bf16_avx512, &fp16_avx512}, &bf16_amx, coded_avx512, coded_amx,
     attention_avx512},
#endif
};

constexpr int32_t num_tiers = std::size(tiers);

std::array<bool, num_tiers> probe() {
  std::array<bool, num_tiers> found{};
  for (int32_t tier = 0; tier < num_tiers; ++tier) found[static_cast<size_t>(tier)] = tiers[tier].runs_here();
  return found;
}

}  // namespace

bool has_tier(int32_t tier) {
  static const std::array<bool, num_tiers> found = probe();
  return tier >= 0 && tier < num_tiers && found[static_cast<size_t>(tier)];
}

const Ops* ops_for(int32_t tier, int32_t weight_dtype, int32_t hidden_dtype, bool rows_are_regular) {
  if (weight_dtype < 0 || weight_dtype >= FIDDLER_NUM_FORMATS) return nullptr;
  if (weight_dtype >= FIDDLER_FIRST_CODE) {
    const bool bf16 = hidden_dtype == FIDDLER_BFLOAT16 && rows_are_regular && tiers[tier].bf16_by_code;
    return (bf16 ? tiers[tier].bf16_by_code : tiers[tier].by_code) + (weight_dtype - FIDDLER_FIRST_CODE);
  }
  const bool bf16 = weight_dtype == FIDDLER_BFLOAT16 && hidden_dtype == FIDDLER_BFLOAT16 && rows_are_regular;
  return bf16 && tiers[tier].bf16_products ? tiers[tier].bf16_products : tiers[tier].by_format[weight_dtype];
}

const AttentionOps& attention_ops_for(int32_t tier, int32_t dtype) { return tiers[tier].attention[dtype]; }

}  // namespace fiddler

extern "C" {

const char* fiddler_tier_name(int32_t tier) {
  return tier >= 0 && tier < fiddler::num_tiers ? fiddler::tiers[tier].name : nullptr;
}

int32_t fiddler_has_tier(int32_t tier) { return fiddler::has_tier(tier); }
}
