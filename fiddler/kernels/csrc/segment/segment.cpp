#include "segment/segment.h"

#include <algorithm>
#include <ctime>
#include <cstring>
#include <new>

#include "pool.h"

#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fiddler {

namespace {

constexpr int64_t max_payload_bytes = int64_t{1} << 32;
constexpr int64_t longest_sleep_ns = 100'000'000;  // a lost wake, of a process that died, costs no more than this
constexpr int checks_between_clocks = 64;

int64_t align(int64_t bytes, int64_t to) { return (bytes + to - 1) / to * to; }

void sleep_while(Word& word, uint32_t value, int64_t ns) {
#ifdef __linux__
  const timespec time{static_cast<time_t>(ns / 1'000'000'000), static_cast<long>(ns % 1'000'000'000)};
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT, value, &time, nullptr, 0);
#else
  (void)word, (void)value, (void)ns;
#endif
}

}  // namespace

int64_t now_ns() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

void wake(Word& word) {
#ifdef __linux__
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE, INT32_MAX, nullptr, nullptr, 0);
#else
  (void)word;
#endif
}

int64_t slots_offset() { return align(sizeof(SegmentHeader), 64); }

int64_t payloads_offset(uint32_t num_slots) {
  return align(slots_offset() + int64_t{num_slots} * int64_t{sizeof(SlotHeader)}, page_bytes);
}

}  // namespace fiddler

using namespace fiddler;

fiddler_segment::fiddler_segment(void* memory, uint32_t slots, int64_t request, int64_t response, int32_t spin)
    : num_slots(slots),
      request_bytes(request),
      response_bytes(response),
      records(max_records),
      memory_(static_cast<unsigned char*>(memory)),
      spin_ns_(spin * 1000) {}

SlotHeader& fiddler_segment::slot(uint32_t index) const {
  return reinterpret_cast<SlotHeader*>(memory_ + slots_offset())[index];
}

unsigned char* fiddler_segment::request(uint32_t index) const {
  return memory_ + payloads_offset(num_slots) + index * (request_bytes + response_bytes);
}

unsigned char* fiddler_segment::response(uint32_t index) const { return request(index) + request_bytes; }

bool fiddler_segment::wait(Word& word, Word& sleeps, uint32_t value, int64_t deadline_ns) const {
  int64_t now = now_ns();
  const int64_t spin_until = now + spin_ns_;
  while (now < spin_until) {
    for (int i = 0; i < checks_between_clocks; ++i) {
      if (word.load(std::memory_order_acquire) != value) return true;
      relax();
    }
    if (closed.load(std::memory_order_relaxed)) return false;
    now = now_ns();
  }
  for (;;) {
    sleeps.store(1, std::memory_order_seq_cst);
    const bool changed = word.load(std::memory_order_seq_cst) != value;
    if (changed || closed.load() || now >= deadline_ns) {
      sleeps.store(0, std::memory_order_relaxed);
      return changed;
    }
    sleep_while(word, value, std::min(deadline_ns - now, longest_sleep_ns));
    now = now_ns();
  }
}

extern "C" int64_t fiddler_segment_size(int32_t num_slots, int64_t request_bytes, int64_t response_bytes) {
  if (num_slots < 1 || static_cast<uint32_t>(num_slots) > max_segment_slots) return 0;
  for (const int64_t bytes : {request_bytes, response_bytes}) {
    if (bytes < page_bytes || bytes > max_payload_bytes || bytes % page_bytes) return 0;
  }
  return payloads_offset(static_cast<uint32_t>(num_slots)) + num_slots * (request_bytes + response_bytes);
}

extern "C" fiddler_segment* fiddler_segment_create(void* memory, int32_t num_slots, int64_t request_bytes,
                                                   int64_t response_bytes, const unsigned char* nonce, int32_t creates,
                                                   int32_t spin_microseconds) {
#ifndef __linux__
  return nullptr;  // there are no futexes
#endif
  if (!memory || !nonce || reinterpret_cast<uintptr_t>(memory) % page_bytes || spin_microseconds < 0) return nullptr;
  if (fiddler_segment_size(num_slots, request_bytes, response_bytes) == 0) return nullptr;
  const auto slots = static_cast<uint32_t>(num_slots);
  fiddler_segment* segment = nullptr;
  try {
    segment = new fiddler_segment(memory, slots, request_bytes, response_bytes, spin_microseconds);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
  SegmentHeader& header = segment->header();
  if (creates) {
    std::memset(memory, 0, static_cast<size_t>(payloads_offset(slots)));
    std::memcpy(header.nonce, nonce, sizeof header.nonce);
    header.num_slots = slots;
    header.request_bytes = static_cast<uint64_t>(request_bytes);
    header.response_bytes = static_cast<uint64_t>(response_bytes);
    header.magic = segment_magic;
    return segment;
  }
  const bool same = header.magic == segment_magic && std::memcmp(header.nonce, nonce, sizeof header.nonce) == 0 &&
                    header.num_slots == slots && header.request_bytes == static_cast<uint64_t>(request_bytes) &&
                    header.response_bytes == static_cast<uint64_t>(response_bytes);
  if (same) return segment;
  delete segment;
  return nullptr;
}

extern "C" void fiddler_segment_destroy(fiddler_segment* segment) { delete segment; }

extern "C" void fiddler_segment_close(fiddler_segment* segment) {
  segment->closed.store(true);
  wake(segment->header().posted);
  for (uint32_t i = 0; i < segment->num_slots; ++i) wake(segment->slot(i).state);
}
