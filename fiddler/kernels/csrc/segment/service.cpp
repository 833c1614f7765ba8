// The service's end of a segment: takes messages, checks them, and computes those that are right and small enough.

#include <algorithm>
#include <cstring>
#include <mutex>

#include "pool.h"
#include "segment/segment.h"

namespace fiddler {

namespace {

constexpr int64_t idle_ns = 20'000'000;  // after which records are drained

struct Message {
  uint32_t slot;
  fiddler_segment_request request;  // a copy, which the other process cannot change
  std::vector<int32_t> ids;         // likewise
  std::vector<float> weights;
};

// The posted slot with the lowest sequence number; num_slots if there is none.
uint32_t oldest(const fiddler_segment& segment) {
  uint32_t found = segment.num_slots;
  uint64_t lowest = 0;
  for (uint32_t i = 0; i < segment.num_slots; ++i) {
    const SlotHeader& slot = segment.slot(i);
    if (slot.state.load(std::memory_order_acquire) != slot_posted) continue;
    const uint64_t sequence = slot.request.sequence;
    if (found == segment.num_slots || sequence < lowest) found = i, lowest = sequence;
  }
  return found;
}

void take(fiddler_segment& segment, uint32_t index, Message& message) {
  SlotHeader& slot = segment.slot(index);
  slot.state.store(slot_taken, std::memory_order_relaxed);
  message.slot = index;
  std::memcpy(&message.request, &slot.request, sizeof message.request);
  message.request.names_bytes = std::min<uint32_t>(message.request.names_bytes, FIDDLER_SEGMENT_NAMES);
}

int64_t element_bytes(int32_t dtype) { return dtype == FIDDLER_FLOAT32 ? 4 : 2; }

// Copies ids and weights, and says whether the message may be computed here.
bool is_for_kernel(const fiddler_segment& segment, const fiddler_segment_limits& limits, Message& message) {
  const fiddler_segment_request& request = message.request;
  if (request.layer >= limits.num_layers || request.rows < 1 || request.experts_per_row < 1) return false;
  if (request.rows > limits.max_rows || request.experts_per_row > limits.max_experts_per_row) return false;
  const int64_t assignments = int64_t{request.rows} * request.experts_per_row;
  if (assignments > limits.most_assignments[request.layer]) return false;
  const fiddler_layer& layer = *limits.layers[request.layer];
  const int64_t hidden_bytes = request.rows * layer.hidden_size * element_bytes(limits.dtype);
  if (hidden_bytes > segment.response_bytes || hidden_bytes + 8 * assignments > segment.request_bytes) return false;
  const unsigned char* payload = segment.request(message.slot) + hidden_bytes;
  message.ids.resize(static_cast<size_t>(assignments));
  message.weights.resize(static_cast<size_t>(assignments));
  std::memcpy(message.ids.data(), payload, static_cast<size_t>(4 * assignments));
  std::memcpy(message.weights.data(), payload + 4 * assignments, static_cast<size_t>(4 * assignments));
  return std::all_of(message.ids.begin(), message.ids.end(),
                     [&](int32_t id) { return id >= -1 && id < layer.num_experts; });
}

// How many experts a message reads, if each has few rows; else 0. What is read is then what takes the time.
uint32_t experts_read(const fiddler_segment_limits& limits, Message& message) {
  if (message.request.rows > static_cast<uint32_t>(limits.most_rows_to_count)) return 0;
  std::sort(message.ids.begin(), message.ids.end());
  uint32_t experts = 0, run = 0;
  for (size_t i = 0; i < message.ids.size(); ++i) {
    if (message.ids[i] < 0) continue;
    const bool same = i > 0 && message.ids[i] == message.ids[i - 1];
    run = same ? run + 1 : 1;
    if (!same) ++experts;
    if (run > static_cast<uint32_t>(limits.few_rows)) return 0;
  }
  return experts;
}

void answer(fiddler_segment& segment, uint32_t index, SlotState state) {
  SlotHeader& slot = segment.slot(index);
  slot.state.store(state, std::memory_order_seq_cst);
  if (slot.caller_sleeps.exchange(0, std::memory_order_seq_cst)) wake(slot.state);
}

// Computes a message; false if the kernel refuses it.
bool compute(fiddler_segment& segment, fiddler_pool& pool, const fiddler_segment_limits& limits, Message& message) {
  const fiddler_segment_request& request = message.request;
  const fiddler_message arguments = {request.rows,
                                     request.experts_per_row,
                                     segment.request(message.slot),
                                     message.ids.data(),
                                     message.weights.data(),
                                     segment.response(message.slot),
                                     limits.dtype,
                                     limits.dtype};
  // a clock that the other process set is believed only where it can be true
  const int64_t taken = now_ns();
  int64_t began = 0, ended = 0;
  {
    const std::lock_guard turn(pool.turn);
    began = now_ns();
    const int64_t elapsed = std::max<int64_t>(began - std::min(request.posted_ns, taken), 0);
    if (request.remaining_ns >= 0 && elapsed >= request.remaining_ns) return false;
    segment.began_ns.store(began, std::memory_order_relaxed);
    const int32_t status = fiddler_run(&pool, limits.tier, limits.layers[request.layer], &arguments);
    ended = now_ns();
    segment.busy_ns.fetch_add(ended - began, std::memory_order_relaxed);
    segment.began_ns.store(0, std::memory_order_relaxed);
    if (status != FIDDLER_OK) return false;
  }
  const double queue_seconds = static_cast<double>(began - taken) * 1e-9;
  const double compute_seconds = static_cast<double>(ended - began) * 1e-9;
  fiddler_segment_response& response = segment.slot(message.slot).response;
  response.sequence = request.sequence;
  response.queue_seconds = queue_seconds;
  response.compute_seconds = compute_seconds;
  response.code = 0;
  response.text_bytes = 0;
  answer(segment, message.slot, slot_answered);
  // after the answer, so that it does not wait
  const uint32_t written = segment.written.load(std::memory_order_relaxed);
  segment.records[written % segment.records.size()] = {static_cast<float>(queue_seconds),
                                                       static_cast<float>(compute_seconds),
                                                       request.layer,
                                                       request.rows,
                                                       request.experts_per_row,
                                                       experts_read(limits, message)};
  segment.written.store(written + 1, std::memory_order_release);
  return true;
}

uint32_t num_records(const fiddler_segment& segment) {
  return segment.written.load(std::memory_order_relaxed) - segment.drained.load(std::memory_order_acquire);
}

}  // namespace

}  // namespace fiddler

using namespace fiddler;

extern "C" int32_t fiddler_segment_serve(fiddler_segment* segment, fiddler_pool* pool,
                                         const fiddler_segment_limits* limits, int32_t* slot,
                                         fiddler_segment_request* request) {
  thread_local Message message;
  SegmentHeader& header = segment->header();
  for (;;) {
    const uint32_t posted = header.posted.load(std::memory_order_acquire);
    if (segment->closed.load(std::memory_order_relaxed)) return FIDDLER_SEGMENT_CLOSED;
    if (num_records(*segment) >= segment->records.size()) return FIDDLER_SEGMENT_RECORDS;
    const uint32_t found = oldest(*segment);
    if (found == segment->num_slots) {
      const int64_t deadline = num_records(*segment) > 0 ? now_ns() + idle_ns : INT64_MAX;
      const bool woken = segment->wait(header.posted, header.service_sleeps, posted, deadline);
      if (!woken && deadline != INT64_MAX && !segment->closed.load()) return FIDDLER_SEGMENT_RECORDS;
      continue;
    }
    take(*segment, found, message);
    if (is_for_kernel(*segment, *limits, message) && compute(*segment, *pool, *limits, message)) continue;
    *slot = static_cast<int32_t>(found);
    *request = message.request;
    return FIDDLER_SEGMENT_MESSAGE;
  }
}

extern "C" int32_t fiddler_segment_answer(fiddler_segment* segment, int32_t index,
                                          const fiddler_segment_response* given, const void* output,
                                          int64_t output_bytes) {
  if (index < 0 || static_cast<uint32_t>(index) >= segment->num_slots) return FIDDLER_BAD_SIZE;
  if (output_bytes < 0 || output_bytes > segment->response_bytes) return FIDDLER_BAD_SIZE;
  const auto slot = static_cast<uint32_t>(index);
  if (output_bytes > 0) std::memcpy(segment->response(slot), output, static_cast<size_t>(output_bytes));
  std::memcpy(&segment->slot(slot).response, given, sizeof *given);
  answer(*segment, slot, given->code == 0 ? slot_answered : slot_refused);
  return FIDDLER_OK;
}

extern "C" const void* fiddler_segment_payload(const fiddler_segment* segment, int32_t index) {
  if (index < 0 || static_cast<uint32_t>(index) >= segment->num_slots) return nullptr;
  return segment->request(static_cast<uint32_t>(index));
}

extern "C" int32_t fiddler_segment_drain(fiddler_segment* segment, fiddler_segment_record* records, int32_t count) {
  uint32_t drained = segment->drained.load(std::memory_order_relaxed);
  const uint32_t written = segment->written.load(std::memory_order_acquire);
  int32_t moved = 0;
  for (; moved < count && drained != written; ++moved, ++drained) {
    records[moved] = segment->records[drained % segment->records.size()];
  }
  segment->drained.store(drained, std::memory_order_release);
  return moved;
}

extern "C" int64_t fiddler_segment_busy(const fiddler_segment* segment) {
  const int64_t began = segment->began_ns.load(std::memory_order_relaxed);
  const int64_t busy = segment->busy_ns.load(std::memory_order_relaxed);
  return busy + (began == 0 ? 0 : std::max<int64_t>(now_ns() - began, 0));
}
