// The C interface of messages through shared memory, which fiddler/kernels/segments binds.
#pragma once

#include "../abi.h"

constexpr int32_t FIDDLER_SEGMENT_TEXT = 512;   // bytes
constexpr int32_t FIDDLER_SEGMENT_NAMES = 512;  // bytes

enum fiddler_segment_event : int32_t {
  FIDDLER_SEGMENT_CLOSED = 0,
  FIDDLER_SEGMENT_MESSAGE = 1,  // a message that is to be answered by the caller of fiddler_segment_serve
  FIDDLER_SEGMENT_RECORDS = 2,  // there are records to drain, and there is time for it or no room for more
};

enum fiddler_segment_outcome : int32_t {
  FIDDLER_SEGMENT_ANSWERED = 0,
  FIDDLER_SEGMENT_REFUSED = 1,  // the text says why
  FIDDLER_SEGMENT_OVERDUE = 2,
  FIDDLER_SEGMENT_ENDED = 3,    // this end was closed
  FIDDLER_SEGMENT_BROKEN = 4,   // the other process wrote what it must not
};

// A message without its payload, which is hidden rows, expert ids and routing weights, one after the other.
struct fiddler_segment_request {
  uint64_t sequence;
  int64_t posted_ns;     // CLOCK_MONOTONIC
  int64_t remaining_ns;  // from then on; negative: no limit
  uint32_t layer;
  uint32_t rows;
  uint32_t experts_per_row;
  uint32_t names_bytes;
  char names[FIDDLER_SEGMENT_NAMES];  // of the requests it is computed for, a line each
};

// An answer without its payload, which is as many rows as were sent.
struct fiddler_segment_response {
  uint64_t sequence;
  double queue_seconds;
  double compute_seconds;
  int32_t code;  // a gRPC status, of a refusal
  uint32_t text_bytes;
  char text[FIDDLER_SEGMENT_TEXT];
};

// What the metrics count of a message.
struct fiddler_segment_record {
  float queue_seconds;
  float compute_seconds;
  uint32_t layer;
  uint32_t rows;
  uint32_t experts_per_row;
  uint32_t experts_read;  // if every expert had few rows, how many there were; else 0
};

// What a service computes by itself. Everything else is handed over.
struct fiddler_segment_limits {
  const fiddler_layer* const* layers;
  const int64_t* most_assignments;  // [num_layers]: rows x experts per row that the native kernel is to compute
  int64_t num_layers;
  int64_t max_rows;
  int64_t max_experts_per_row;
  int32_t dtype;  // of hidden rows, both ways
  int32_t tier;
  int32_t few_rows;            // of one expert
  int32_t most_rows_to_count;  // in a message, for experts_read
};

#pragma GCC visibility push(default)
extern "C" {

struct fiddler_segment;

// The size of a mapping; 0 if the numbers are out of range.
int64_t fiddler_segment_size(int32_t num_slots, int64_t request_bytes, int64_t response_bytes);

// Takes memory of that size, which must stay mapped until fiddler_segment_destroy. With `creates` it is initialised, and
// the nonce written; else null is returned unless it holds the same numbers and nonce. `spin_microseconds` is how long
// this end waits before it sleeps.
fiddler_segment* fiddler_segment_create(void* memory, int32_t num_slots, int64_t request_bytes, int64_t response_bytes,
                                        const unsigned char* nonce, int32_t creates, int32_t spin_microseconds);
void fiddler_segment_destroy(fiddler_segment* segment);

// Makes every wait on this end return. For any thread.
void fiddler_segment_close(fiddler_segment* segment);

// --- The caller's end. For one thread, but for close.

// Posts a message and returns its slot; -1 if no slot is free, -2 if the payload is larger than a slot's.
int32_t fiddler_segment_post(fiddler_segment* segment, const fiddler_segment_request* request, const void* hidden,
                             int64_t hidden_bytes, const int32_t* expert_ids, const float* routing_weights);

// Waits for a slot's answer, at most so long: a fiddler_segment_outcome. Of an answer, copies `output_bytes` of rows. The
// slot is free afterwards if there was an answer or a refusal.
int32_t fiddler_segment_wait(fiddler_segment* segment, int32_t slot, uint64_t sequence, double seconds, void* output,
                             int64_t output_bytes, fiddler_segment_response* response);

// What a layer of a decode step computes, fiddler_attend_block with a router, and then posts: its normed rows for the
// experts that are chosen. `slot` is what fiddler_segment_post returns. Returns a fiddler_status.
int32_t fiddler_attend_and_post(fiddler_pool* pool, int32_t tier, const fiddler_attention_block* block,
                                fiddler_segment* segment, const fiddler_segment_request* request, int32_t* slot);

// fiddler_segment_wait for `count` values of bfloat16, to which `addend` is added if all are finite; if not, `output` is
// what was answered.
int32_t fiddler_segment_join(fiddler_segment* segment, int32_t slot, uint64_t sequence, double seconds,
                             const void* addend, void* output, int64_t count, fiddler_segment_response* response,
                             int32_t* is_finite);

// Frees a slot whose answer nobody waits for any more, if it is there; 1 if the slot is free now.
int32_t fiddler_segment_release(fiddler_segment* segment, int32_t slot);

// --- The service's end. For one thread, but for close, drain, busy and pool locks.

// Computes messages in the order of their sequence numbers until something is to be done by the caller: a
// fiddler_segment_event. Of a message, `slot` and a copy of its request are filled in.
int32_t fiddler_segment_serve(fiddler_segment* segment, fiddler_pool* pool, const fiddler_segment_limits* limits,
                              int32_t* slot, fiddler_segment_request* request);

// Answers a message that was handed over: with code 0 by `output`, else with a refusal.
int32_t fiddler_segment_answer(fiddler_segment* segment, int32_t slot, const fiddler_segment_response* response,
                               const void* output, int64_t output_bytes);

// Where a slot's payload lies, and how much room it has.
const void* fiddler_segment_payload(const fiddler_segment* segment, int32_t slot);

// Moves up to `count` records out, oldest first; returns how many. For one thread at a time, any one.
int32_t fiddler_segment_drain(fiddler_segment* segment, fiddler_segment_record* records, int32_t count);

// Nanoseconds in which it computed. For any thread.
int64_t fiddler_segment_busy(const fiddler_segment* segment);
}
#pragma GCC visibility pop
