// fiddler_segment_join: the end of a layer whose experts were sent, in one call.

#include <cstring>

#include "abi.h"
#include "calls/interface.h"
#include "segment/abi.h"

extern "C" int32_t fiddler_segment_join(fiddler_segment* segment, int32_t slot, uint64_t sequence, double seconds,
                                        const void* addend, void* output, int64_t count,
                                        fiddler_segment_response* response, int32_t* is_finite) {
  using namespace fiddler;
  *is_finite = 0;
  const int64_t bytes = count * static_cast<int64_t>(sizeof(Bf16));
  const int32_t outcome = fiddler_segment_wait(segment, slot, sequence, seconds, output, bytes, response);
  if (outcome != FIDDLER_SEGMENT_ANSWERED) return outcome;
  *is_finite = fiddler_is_finite(output, count, FIDDLER_BFLOAT16);
  if (*is_finite) add(addend, output, output, count);
  return outcome;
}
