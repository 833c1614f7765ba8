// fiddler_attend: divides attention into tasks, and joins what they found.

#include <atomic>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <vector>

#include "attention/attention.h"
#include "calls/interface.h"
#include "dispatch.h"
#include "pool.h"

namespace fiddler {
namespace {

constexpr int64_t products_of_one_thread = 1 << 20;  // waking another takes longer than half of so many
constexpr int64_t most_values = 1 << 16;             // of a head

// Memory that is kept from one call to the next. Each calling thread has its own.
struct Space {
  std::vector<int64_t> key_places, value_places;
  Buffer queries, sums;
};

int64_t tasks_of(const fiddler_attention& job) {
  return (job.length + attention_positions - 1) / attention_positions;
}

int32_t check(int32_t tier, const fiddler_attention* job) {
  if (!job) return FIDDLER_NULL_POINTER;
  for (int64_t size : {job->heads, job->kv_heads, job->length, job->key_size, job->value_size}) {
    if (size < 1) return FIDDLER_BAD_SIZE;
  }
  if (job->rows < 0 || job->rows > INT32_MAX || job->heads > INT32_MAX) return FIDDLER_BAD_SIZE;
  if (job->heads % job->kv_heads != 0) return FIDDLER_BAD_SIZE;
  if (job->key_size > most_values || job->value_size > most_values) return FIDDLER_BAD_SIZE;
  if (job->dtype != FIDDLER_FLOAT32 && job->dtype != FIDDLER_BFLOAT16) return FIDDLER_BAD_DTYPE;
  if (!has_tier(tier)) return FIDDLER_BAD_TIER;
  if (job->rows == 0) return FIDDLER_OK;
  for (const void* pointer : {job->queries, job->keys, job->values, static_cast<const void*>(job->output)}) {
    if (!pointer) return FIDDLER_NULL_POINTER;
    if (!is_aligned(pointer, element_bytes(job->dtype))) return FIDDLER_MISALIGNED;
  }
  return FIDDLER_OK;
}

// The places of so many values in a tier's order.
void find_places(const AttentionOps& ops, int64_t size, std::vector<int64_t>& places) {
  places.resize(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i) places[static_cast<size_t>(i)] = ops.place(i, size);
}

template <class Stored>
void scale_query(const Stored* query, float scale, const std::vector<int64_t>& places, float* to) {
  for (size_t i = 0; i < places.size(); ++i) to[places[i]] = to_float(query + i) * scale;
}

template <class Stored>
void store(const float* values, float scale, const std::vector<int64_t>& places, Stored* to) {
  for (size_t i = 0; i < places.size(); ++i) from_float(values[places[i]] * scale, to + i);
}

// Where the tasks' sums are, and in which order their values.
struct Parts {
  float* data;
  int64_t floats;  // from one to the next
  int64_t num_tasks;
  int64_t per_head;  // heads of queries for a head of keys

  // Those of the heads that share one task, next to each other.
  float* of(int64_t row, int64_t kv_head, int64_t kv_heads, int64_t task) const {
    return data + ((row * kv_heads + kv_head) * num_tasks + task) * per_head * floats;
  }
};

// Writes one head of a row: the sums of all tasks, brought to one largest score.
void join(const fiddler_attention& job, const std::vector<int64_t>& places, const Parts& parts, int64_t row,
          int64_t head) {
  constexpr float minus_infinity = -std::numeric_limits<float>::infinity();
  const int64_t kv_head = head / parts.per_head, place = head % parts.per_head;
  const auto part = [&](int64_t task) {
    return reinterpret_cast<const AttentionPart*>(parts.of(row, kv_head, job.kv_heads, task) + place * parts.floats);
  };
  float largest = job.sinks ? job.sinks[head] : minus_infinity;
  for (int64_t t = 0; t < parts.num_tasks; ++t) largest = part(t)->largest > largest ? part(t)->largest : largest;
  const float base = largest == minus_infinity ? 0.0f : largest;
  float sum = job.sinks ? std::exp(job.sinks[head] - base) : 0.0f;
  float* total = const_cast<float*>(part(0)->values);
  for (int64_t t = 0; t < parts.num_tasks; ++t) {
    // of a task that saw nothing, or only what is not a number, which then stays in the sums
    const float weight = part(t)->largest == minus_infinity ? 1.0f : std::exp(part(t)->largest - base);
    sum += weight * part(t)->sum;
    if (t == 0 && weight == 1.0f) continue;
    for (int64_t i = 0; i < job.value_size; ++i) total[i] = (t == 0 ? 0.0f : total[i]) + weight * part(t)->values[i];
  }
  // a token that sees nothing gets zeros
  const float scale = sum == 0.0f ? 0.0f : 1.0f / sum;
  const int64_t first = (row * job.heads + head) * job.value_size;
  if (job.dtype == FIDDLER_FLOAT32) {
    store(total, scale, places, static_cast<float*>(job.output) + first);
  } else {
    store(total, scale, places, static_cast<Bf16*>(job.output) + first);
  }
}

void compute(fiddler_pool& pool, const fiddler_attention& job, const AttentionOps& ops) {
  thread_local Space space;
  const int64_t num_tasks = tasks_of(job), num_heads = job.rows * job.heads;
  find_places(ops, job.key_size, space.key_places);
  find_places(ops, job.value_size, space.value_places);
  const std::vector<int64_t>& value_places = space.value_places;  // of this thread, for all of them
  float* scaled = reinterpret_cast<float*>(space.queries.reserve(num_heads * job.key_size * 4));
  for (int64_t h = 0; h < num_heads; ++h) {
    const int64_t from = h / job.heads * job.query_row_stride + h % job.heads * job.query_head_stride;
    float* to = scaled + h * job.key_size;
    if (job.dtype == FIDDLER_FLOAT32) {
      scale_query(static_cast<const float*>(job.queries) + from, job.scale, space.key_places, to);
    } else {
      scale_query(static_cast<const Bf16*>(job.queries) + from, job.scale, space.key_places, to);
    }
  }
  Parts parts = {nullptr, (2 + job.value_size + 15) / 16 * 16, num_tasks, job.heads / job.kv_heads};
  parts.data = reinterpret_cast<float*>(space.sums.reserve(num_heads * num_tasks * parts.floats * 4));
  std::atomic<int64_t> next{0}, next_head{0};
  const int64_t total_tasks = job.rows * job.kv_heads * num_tasks;
  const bool is_small = num_heads * job.length * (job.key_size + job.value_size) <= products_of_one_thread;
  const int threads = is_small ? 1 : pool.size();
  Barrier attended(threads);
  const auto work = [&](int) {
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < total_tasks;) {
      const int64_t number = task % num_tasks, kv_head = task / num_tasks % job.kv_heads;
      const int64_t row = task / num_tasks / job.kv_heads;
      const int64_t begin = number * attention_positions;
      const int64_t end = begin + attention_positions < job.length ? begin + attention_positions : job.length;
      const float* own = scaled + (row * job.heads + kv_head * parts.per_head) * job.key_size;
      ops.attend(job, row, kv_head, begin, end, own, parts.per_head, parts.of(row, kv_head, job.kv_heads, number),
                 parts.floats);
    }
    attended.wait();
    for (int64_t head; (head = next_head.fetch_add(1, std::memory_order_relaxed)) < num_heads;) {
      join(job, value_places, parts, head / job.heads, head % job.heads);
    }
  };
  if (is_small) {
    work(0);
  } else {
    pool.run(work);
  }
}

}  // namespace
}  // namespace fiddler

extern "C" int32_t fiddler_attend(fiddler_pool* pool, int32_t tier, const fiddler_attention* job) {
  using namespace fiddler;
  if (!pool) return FIDDLER_NULL_POINTER;
  if (const int32_t status = check(tier, job)) return status;
  if (job->rows == 0) return FIDDLER_OK;
  if (!pool->enter()) return FIDDLER_BUSY;
  int32_t status = FIDDLER_OK;
  try {
    compute(*pool, *job, attention_ops_for(tier, job->dtype));
  } catch (const std::bad_alloc&) {
    status = FIDDLER_NO_MEMORY;
  }
  pool->leave();
  return status;
}
