// Both ends of a segment and the pool in one process, for ThreadSanitizer: what one thread writes as plain memory and
// another reads is ordered by the atomics of pool.cpp and segment/*.cpp. The kernels are left out, since they share
// nothing but the barriers; `fiddler_run` below divides its rows among the pool's threads as they do.
//
// The sanitizer does not know futexes, and need not: a futex only ends a sleep, and every word that is slept on is an
// atomic. A caller that breaks the rules is left to test_segment.cpp, since what it does is a race by intention.

#include <cstdio>
#include <cstdlib>
#include <thread>

#include "job.h"
#include "pool.h"
#include "segment/segment.h"

namespace {

constexpr int32_t slots = 4;
constexpr int64_t request_bytes = 8192, response_bytes = 4096;
constexpr int64_t hidden = 32;
constexpr uint32_t rows = 6, experts_per_row = 2;
constexpr uint64_t messages = 1000, handed_over_every = 7;
constexpr int admissions = 1000;
constexpr unsigned char nonce[16] = {1, 2, 3};

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "failed: %s\n", what);
  std::exit(1);
}

struct Memory {
  unsigned char* data = static_cast<unsigned char*>(
      std::aligned_alloc(4096, static_cast<size_t>(fiddler_segment_size(slots, request_bytes, response_bytes))));
  ~Memory() { std::free(data); }
};

float expected(uint64_t sequence, uint32_t row, int64_t column) {
  return 3.0f * static_cast<float>(sequence + row * 100) + static_cast<float>(column);
}

// Serves one segment as the CPU expert service's thread does, until it is closed.
void serve(fiddler_segment* segment, fiddler_pool* pool, const fiddler_segment_limits& limits) {
  int32_t slot = 0;
  fiddler_segment_request request;
  for (;;) {
    const int32_t event = fiddler_segment_serve(segment, pool, &limits, &slot, &request);
    if (event == FIDDLER_SEGMENT_CLOSED) return;
    if (event != FIDDLER_SEGMENT_MESSAGE) {  // nobody drains at present
      std::this_thread::yield();
      continue;
    }
    fiddler_segment_response refusal = {request.sequence, 0, 0, 3, 0, {}};
    fiddler_segment_answer(segment, slot, &refusal, nullptr, 0);
  }
}

// Posts as many messages as there are slots before it waits for the first.
void call(fiddler_segment* segment) {
  std::vector<float> sent(rows * hidden), output(rows * hidden);
  const std::vector<int32_t> ids(rows * experts_per_row, 0);
  const std::vector<float> weights(rows * experts_per_row, 3.0f);
  std::vector<int32_t> taken;
  uint64_t waited = 0;
  for (uint64_t sequence = 1; waited < messages;) {
    if (sequence <= messages && taken.size() < waited + slots) {
      for (uint32_t row = 0; row < rows; ++row) {
        for (int64_t i = 0; i < hidden; ++i) sent[row * hidden + i] = static_cast<float>(sequence + row * 100);
      }
      fiddler_segment_request request = {};
      request.sequence = sequence;
      request.remaining_ns = -1;
      request.layer = sequence % handed_over_every == 0 ? 1 : 0;  // of which there is none
      request.rows = rows;
      request.experts_per_row = experts_per_row;
      const int32_t slot =
          fiddler_segment_post(segment, &request, sent.data(), rows * hidden * 4, ids.data(), weights.data());
      require(slot >= 0, "a free slot takes a message");
      taken.push_back(slot);
      ++sequence;
      continue;
    }
    fiddler_segment_response response;
    const int32_t slot = taken[waited++];
    const int32_t outcome =
        fiddler_segment_wait(segment, slot, waited, 20, output.data(), rows * hidden * 4, &response);
    require(outcome == (waited % handed_over_every == 0 ? FIDDLER_SEGMENT_REFUSED : FIDDLER_SEGMENT_ANSWERED),
            "every message is answered, and refused if its layer is unknown");
    if (outcome == FIDDLER_SEGMENT_REFUSED) continue;
    for (uint32_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < hidden; ++i) {
        require(output[row * hidden + i] == expected(waited, row, i), "the answer is that of the message");
      }
    }
  }
}

// One connection: the caller's thread, the service's, and the one that reads the metrics.
void connect(fiddler_pool* pool, const fiddler_segment_limits& limits, int32_t spin_microseconds) {
  Memory memory;
  const auto create = [&](int32_t creates) {
    return fiddler_segment_create(memory.data, slots, request_bytes, response_bytes, nonce, creates, spin_microseconds);
  };
  fiddler_segment* service = create(1);
  fiddler_segment* caller = create(0);
  require(service && caller, "both ends agree on the segment");
  std::atomic<bool> ended{false};
  uint64_t counted = 0;
  std::thread serving([&] { serve(service, pool, limits); });
  std::thread counting([&] {
    fiddler_segment_record records[16];
    for (bool last = false; !last;) {
      last = ended.load();
      while (const int32_t moved = fiddler_segment_drain(service, records, 16)) counted += static_cast<uint64_t>(moved);
      require(fiddler_segment_busy(service) >= 0, "busy time is counted");
      std::this_thread::yield();
    }
  });
  call(caller);
  fiddler_segment_close(service);
  serving.join();
  ended.store(true);
  counting.join();
  require(counted == messages - messages / handed_over_every, "every message that was computed has a record");
  fiddler_segment_destroy(caller);
  fiddler_segment_destroy(service);
}

void refuse_a_second_caller(fiddler_pool* pool) {
  int admitted = 0;  // plain: the pool orders its callers
  const auto enter = [&] {
    for (int i = 0; i < admissions;) {
      if (!pool->enter()) {
        std::this_thread::yield();
        continue;
      }
      ++admitted;
      pool->leave();
      ++i;
    }
  };
  std::thread other(enter);
  enter();
  other.join();
  require(admitted == 2 * admissions, "the pool admits one caller at a time");
}

}  // namespace

// Scales each row by its first routing weight and adds the column, in two phases with a barrier between them.
extern "C" int32_t fiddler_run(fiddler_pool* pool, int32_t, const fiddler_layer* layer,
                               const fiddler_message* message) {
  if (!pool->enter()) return FIDDLER_BUSY;
  const int64_t columns = layer->hidden_size;
  const auto* in = static_cast<const float*>(message->hidden);
  auto* out = static_cast<float*>(message->output);
  std::vector<float> scaled(static_cast<size_t>(message->rows * columns));
  fiddler::Barrier between(pool->size());
  pool->run([&](int index) {
    for (int64_t row = index; row < message->rows; row += pool->size()) {
      const float weight = message->routing_weights[row * message->experts_per_row];
      for (int64_t i = 0; i < columns; ++i) scaled[row * columns + i] = in[row * columns + i] * weight;
    }
    between.wait();
    for (int64_t row = pool->size() - 1 - index; row < message->rows; row += pool->size()) {  // another thread's rows
      for (int64_t i = 0; i < columns; ++i) out[row * columns + i] = scaled[row * columns + i] + static_cast<float>(i);
    }
  });
  pool->leave();
  return FIDDLER_OK;
}

int main() {
  fiddler_layer layer = {};
  layer.hidden_size = hidden;
  layer.num_experts = 1;
  const fiddler_layer* layers[] = {&layer};
  const int64_t most[] = {1 << 20};
  const fiddler_segment_limits limits = {layers, most, 1, rows, experts_per_row, FIDDLER_FLOAT32, 0, 2, 8};
  const int32_t cpus[] = {-1, -1, -1}, nodes[] = {0, 0, 0};
  for (const int32_t spin_microseconds : {0, 200}) {
    for (const int threads : {1, 3}) {
      fiddler_pool pool(cpus, nodes, threads, spin_microseconds);
      // two connections, which take turns at the pool
      std::thread other([&] { connect(&pool, limits, spin_microseconds); });
      connect(&pool, limits, spin_microseconds);
      other.join();
      refuse_a_second_caller(&pool);
    }
  }
  std::puts("races: none in the segment and the pool");
  return 0;
}
