// Messages through memory that two processes map: the GPU service posts them, and the CPU expert service computes them
// without a copy of their rows and without Python. fiddler/kernels/segments negotiates and owns the mapping.
//
// The other process may be broken. Whatever it writes into the memory, at any time, nothing outside the mapping is read
// or written: every number is copied once and then checked, and no address or size is taken from the memory.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "segment/abi.h"

namespace fiddler {

constexpr uint64_t segment_magic = 0x316c'6464'6966'6d73;  // "smfiddl1"
constexpr int64_t page_bytes = 4096;
constexpr uint32_t max_segment_slots = 64;

enum SlotState : uint32_t {
  slot_free = 0,    // the caller's
  slot_posted = 1,  // the service's, as are the next two
  slot_taken = 2,
  slot_answered = 3,  // the caller's again
  slot_refused = 4,   // likewise; the text says why
};

using Word = std::atomic<uint32_t>;  // a futex
static_assert(Word::is_always_lock_free && sizeof(Word) == 4);

// At the beginning of the mapping. The one who made it writes `magic` to `response_bytes` and nobody afterwards; both
// sides compare them with what they agreed on and use their own copies.
struct alignas(64) SegmentHeader {
  uint64_t magic;
  unsigned char nonce[16];
  uint64_t num_slots;
  uint64_t request_bytes;
  uint64_t response_bytes;
  alignas(64) Word posted;  // counts posts
  alignas(64) Word service_sleeps;
};

struct alignas(64) SlotHeader {
  Word state;
  Word caller_sleeps;
  alignas(64) fiddler_segment_request request;
  alignas(64) fiddler_segment_response response;
};

int64_t now_ns();       // CLOCK_MONOTONIC
void wake(Word& word);  // wakes all who sleep on it
int64_t slots_offset();
int64_t payloads_offset(uint32_t num_slots);

}  // namespace fiddler

// One process's end of a mapping.
struct fiddler_segment {
 public:
  fiddler_segment(void* memory, uint32_t slots, int64_t request, int64_t response, int32_t spin);

  fiddler::SegmentHeader& header() const { return *reinterpret_cast<fiddler::SegmentHeader*>(memory_); }
  fiddler::SlotHeader& slot(uint32_t index) const;
  unsigned char* request(uint32_t index) const;
  unsigned char* response(uint32_t index) const;

  // Waits until `word` is no longer `value`, for the other process's wake or until the deadline; `sleeps` tells the
  // other process that a wake is needed. False if the time ran out or this end was closed.
  bool wait(fiddler::Word& word, fiddler::Word& sleeps, uint32_t value, int64_t deadline_ns) const;

  const uint32_t num_slots;
  const int64_t request_bytes;
  const int64_t response_bytes;
  std::atomic<bool> closed{false};
  std::atomic<int64_t> busy_ns{0};        // of messages that ended
  std::atomic<int64_t> began_ns{0};       // when the one under way began; 0 if none is

  // What was computed, for the metrics: one thread writes, one reads.
  static constexpr uint32_t max_records = 1 << 14;
  std::vector<fiddler_segment_record> records;
  std::atomic<uint32_t> written{0}, drained{0};

 private:
  unsigned char* memory_;
  int32_t spin_ns_;
};
