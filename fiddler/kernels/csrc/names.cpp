// The names of what abi.h numbers. Python takes its lists from here.

#include <iterator>

#include "abi.h"

namespace {

constexpr const char* dtypes[] = {"float32", "bfloat16", "float16"};
static_assert(std::size(dtypes) == FIDDLER_FLOAT16 + 1);

constexpr const char* codes[] = {"e4m3", "int8", "uint8", "uint4", "e2m1"};
static_assert(std::size(codes) == FIDDLER_NUM_FORMATS - FIDDLER_FIRST_CODE);

constexpr const char* scales[] = {"float32", "bfloat16", "float16", "e8m0", "e4m3"};
static_assert(std::size(scales) == FIDDLER_NUM_SCALES);

constexpr const char* activations[] = {"silu",         "gelu_erf",       "gelu_tanh",   "relu",
                                       "relu_squared", "clamped_swiglu", "clamped_silu"};
static_assert(std::size(activations) == FIDDLER_CLAMPED_SILU + 1);

constexpr const char* statuses[] = {
    "done",
    "a pointer is null",
    "a size is less than 1",
    "a dtype or an activation is unknown",
    "an expert id is out of range",
    "this CPU does not have the tier",
    "a tensor of the message is not aligned to its elements",
    "another message is being computed",
    "there is not enough memory",
    "a weight is infinite or not a number",
};
static_assert(std::size(statuses) == FIDDLER_NOT_FINITE + 1);

template <int Count>
const char* name_at(const char* const (&names)[Count], int32_t number) {
  return number >= 0 && number < Count ? names[number] : nullptr;
}

}  // namespace

extern "C" {

const char* fiddler_dtype_name(int32_t dtype) { return name_at(dtypes, dtype); }
const char* fiddler_code_name(int32_t code) { return name_at(codes, code); }
const char* fiddler_scale_name(int32_t scale) { return name_at(scales, scale); }
const char* fiddler_activation_name(int32_t activation) { return name_at(activations, activation); }
const char* fiddler_status_text(int32_t status) { return name_at(statuses, status); }
}
