// A caller that writes anything into a segment, at any time, for the sanitizers: the service computes, hands over or
// waits, and touches nothing outside of the memory.

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>

#include "layers.h"
#include "segment/segment.h"

namespace {

constexpr int32_t slots = 3;
constexpr int64_t request_bytes = 8192, response_bytes = 4096;
constexpr unsigned char nonce[16] = {1, 2, 3};

// Memory that ends with the segment, aligned to pages.
struct Memory {
  int64_t bytes = fiddler_segment_size(slots, request_bytes, response_bytes);
  unsigned char* data = static_cast<unsigned char*>(std::aligned_alloc(4096, static_cast<size_t>(bytes)));
  ~Memory() { std::free(data); }
};

struct Counts {
  int64_t handed_over = 0, computed = 0;
};

Counts serve(fiddler_segment* segment, fiddler_pool* pool, const fiddler_segment_limits& limits) {
  Counts counts;
  int32_t slot = 0;
  fiddler_segment_request request;
  fiddler_segment_record records[64];
  for (;;) {
    const int32_t event = fiddler_segment_serve(segment, pool, &limits, &slot, &request);
    counts.computed += fiddler_segment_drain(segment, records, 64);
    if (event == FIDDLER_SEGMENT_CLOSED) return counts;
    if (event != FIDDLER_SEGMENT_MESSAGE) continue;
    ++counts.handed_over;
    fiddler_segment_response refusal = {request.sequence, 0, 0, 3, 0, {}};
    fiddler_segment_answer(segment, slot, &refusal, nullptr, 0);
  }
}

// Posts a message that is right, unless what was written before prevents it.
void post(fiddler_segment* caller, uint64_t sequence, const float* hidden, int64_t hidden_size) {
  const int32_t ids[4] = {0, 1, -1, 1};
  const float weights[4] = {0.5f, 0.5f, 0.5f, 0.5f};
  fiddler_segment_request request = {};
  request.sequence = sequence;
  request.remaining_ns = -1;
  request.rows = 2;
  request.experts_per_row = 2;
  fiddler_segment_response response;
  float output[2 * 64];
  const int32_t slot = fiddler_segment_post(caller, &request, hidden, 2 * hidden_size * 4, ids, weights);
  if (slot >= 0) fiddler_segment_wait(caller, slot, sequence, 0.001, output, 2 * hidden_size * 4, &response);
}

uint32_t drawn(std::mt19937& random) {
  const uint32_t words[] = {0, 1, 2, 3, 4, 0xffffffffu, 0x7fffffffu, 0x80000000u, static_cast<uint32_t>(random())};
  return words[random() % 9];
}

// Writes bytes and words anywhere, or posts a slot whose numbers are drawn.
void damage(fiddler_segment* caller, unsigned char* memory, int64_t bytes, std::mt19937& random) {
  if (random() % 2) {
    const auto where = static_cast<uint32_t>(random() % static_cast<uint64_t>(bytes - 8) / 4 * 4);
    const uint32_t word = drawn(random);
    std::memcpy(memory + where, &word, random() % 3 ? 4 : 1);
    return;
  }
  fiddler::SlotHeader& slot = caller->slot(static_cast<uint32_t>(random() % slots));
  fiddler_segment_request& request = slot.request;
  request.sequence = drawn(random);
  request.posted_ns = static_cast<int64_t>(random());
  request.remaining_ns = random() % 2 ? -1 : static_cast<int64_t>(drawn(random));
  request.layer = random() % 2 ? 0 : drawn(random);
  request.rows = random() % 2 ? 2 : drawn(random);
  request.experts_per_row = random() % 2 ? 2 : drawn(random);
  request.names_bytes = drawn(random);
  slot.state.store(fiddler::slot_posted);
  caller->header().posted.fetch_add(1);
}

}  // namespace

int main() {
  const Shape shape = {2, 2, 3, 64, 32};
  const Layer layer(shape, FIDDLER_FLOAT32, false, true, false, false, 0);
  const int32_t cpu = 0, node = 0;
  fiddler_pool* pool = fiddler_pool_create(&cpu, &node, 1, 0);
  const fiddler_layer* layers[] = {&layer.layer};
  const int64_t most[] = {1 << 20};
  const fiddler_segment_limits limits = {layers, most, 1, 12, 4, FIDDLER_FLOAT32, 0, 2, 8};
  std::mt19937 random(7);
  std::vector<float> hidden(2 * 64, 0.5f);
  Counts total;
  for (int round = 0; round < 40; ++round) {
    Memory memory;
    fiddler_segment* service =
        fiddler_segment_create(memory.data, slots, request_bytes, response_bytes, nonce, 1, round % 2);
    fiddler_segment* caller =
        fiddler_segment_create(memory.data, slots, request_bytes, response_bytes, nonce, 0, round % 2);
    if (!service || !caller) return std::fputs("failed: fiddler_segment_create\n", stderr), 1;
    Counts counts;
    std::thread server([&] { counts = serve(service, pool, limits); });
    for (uint64_t sequence = 1; sequence < 60; ++sequence) {
      post(caller, sequence, hidden.data(), shape.hidden);
      for (int i = 0; i < 4 && round > 0; ++i) damage(caller, memory.data, memory.bytes, random);
      std::this_thread::sleep_for(std::chrono::microseconds(round > 0 ? 100 : 0));  // so that the service meets it
      for (int32_t i = 0; i < slots; ++i) fiddler_segment_release(caller, i);
    }
    fiddler_segment_close(service);
    server.join();
    if (round == 0 && (counts.computed < 59 || counts.handed_over != 0)) {
      return std::fprintf(stderr, "failed: %lld of 59 messages computed\n", static_cast<long long>(counts.computed)), 1;
    }
    total.computed += counts.computed;
    total.handed_over += counts.handed_over;
    fiddler_segment_destroy(caller);
    fiddler_segment_destroy(service);
  }
  fiddler_pool_destroy(pool);
  if (total.handed_over < 100) return std::fputs("failed: little that was wrong was noticed\n", stderr), 1;
  std::printf("segment: %lld messages computed, %lld handed over\n", static_cast<long long>(total.computed),
              static_cast<long long>(total.handed_over));
  return 0;
}
