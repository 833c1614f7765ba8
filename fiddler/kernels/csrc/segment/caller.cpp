// The caller's end of a segment: posts messages and waits for their answers.

#include <algorithm>
#include <cstring>

#include "segment/segment.h"

using namespace fiddler;

extern "C" int32_t fiddler_segment_post(fiddler_segment* segment, const fiddler_segment_request* request,
                                        const void* hidden, int64_t hidden_bytes, const int32_t* expert_ids,
                                        const float* routing_weights) {
  const int64_t ids_bytes = int64_t{request->rows} * request->experts_per_row * 4;
  if (hidden_bytes > segment->response_bytes || hidden_bytes + 2 * ids_bytes > segment->request_bytes) return -2;
  for (uint32_t i = 0; i < segment->num_slots; ++i) {
    SlotHeader& slot = segment->slot(i);
    if (slot.state.load(std::memory_order_acquire) != slot_free) continue;
    unsigned char* payload = segment->request(i);
    std::memcpy(payload, hidden, static_cast<size_t>(hidden_bytes));
    std::memcpy(payload + hidden_bytes, expert_ids, static_cast<size_t>(ids_bytes));
    std::memcpy(payload + hidden_bytes + ids_bytes, routing_weights, static_cast<size_t>(ids_bytes));
    std::memcpy(&slot.request, request, offsetof(fiddler_segment_request, names));
    const uint32_t names_bytes = std::min<uint32_t>(request->names_bytes, FIDDLER_SEGMENT_NAMES);
    slot.request.names_bytes = names_bytes;
    std::memcpy(slot.request.names, request->names, names_bytes);
    slot.request.posted_ns = now_ns();
    slot.state.store(slot_posted, std::memory_order_release);
    SegmentHeader& header = segment->header();
    header.posted.fetch_add(1, std::memory_order_seq_cst);
    if (header.service_sleeps.exchange(0, std::memory_order_seq_cst)) wake(header.posted);
    return static_cast<int32_t>(i);
  }
  return -1;
}

extern "C" int32_t fiddler_segment_wait(fiddler_segment* segment, int32_t index, uint64_t sequence, double seconds,
                                        void* output, int64_t output_bytes, fiddler_segment_response* response) {
  SlotHeader& slot = segment->slot(static_cast<uint32_t>(index));
  const double longest = 1e9;  // seconds; what is beyond would overflow
  const int64_t deadline = now_ns() + static_cast<int64_t>(std::clamp(seconds, 0.0, longest) * 1e9);
  for (;;) {
    const uint32_t state = slot.state.load(std::memory_order_acquire);
    if (state == slot_answered || state == slot_refused) break;
    if (state != slot_posted && state != slot_taken) return FIDDLER_SEGMENT_BROKEN;
    if (!segment->wait(slot.state, slot.caller_sleeps, state, deadline)) {
      return segment->closed.load() ? FIDDLER_SEGMENT_ENDED : FIDDLER_SEGMENT_OVERDUE;
    }
  }
  const bool refused = slot.state.load(std::memory_order_acquire) == slot_refused;
  std::memcpy(response, &slot.response, sizeof *response);
  response->text_bytes = std::min<uint32_t>(response->text_bytes, FIDDLER_SEGMENT_TEXT);
  if (response->sequence != sequence || output_bytes > segment->response_bytes) return FIDDLER_SEGMENT_BROKEN;
  if (!refused) std::memcpy(output, segment->response(static_cast<uint32_t>(index)), static_cast<size_t>(output_bytes));
  slot.state.store(slot_free, std::memory_order_release);
  return refused ? FIDDLER_SEGMENT_REFUSED : FIDDLER_SEGMENT_ANSWERED;
}

extern "C" int32_t fiddler_segment_release(fiddler_segment* segment, int32_t index) {
  Word& state = segment->slot(static_cast<uint32_t>(index)).state;
  const uint32_t now = state.load(std::memory_order_acquire);
  if (now == slot_answered || now == slot_refused) state.store(slot_free, std::memory_order_release);
  return state.load(std::memory_order_relaxed) == slot_free;
}
