// fiddler_run: checks a message, turns it into a Job, and lets the pool compute it in two passes.

#include <algorithm>
#include <new>
#include <vector>

#include "dispatch.h"
#include "calls/interface.h"
#include "plan.h"
#include "pool.h"

namespace fiddler {
namespace {

// Memory that is kept from one message to the next, so that messages allocate nothing. Each calling thread has its own.
struct Workspace {
  Grouping grouping;
  std::vector<ExpertRows> experts;
  std::vector<const void*> hidden_rows;
  std::vector<void*> inner_rows;
  Buffer hidden, inner, sums, tiles;
  TaskList inner_tasks, outer_tasks;
};

bool is_regular(const fiddler_layer& layer) {
  const bool rows = layer.up.in_stride == 1 && layer.down.in_stride == 1;
  const bool gate_rows = !layer.gate.weights || layer.gate.in_stride == 1;
  const bool factor_rows = !layer.factor.weights || layer.factor.in_stride == 1;
  return rows && gate_rows && factor_rows && layer.hidden_size % 2 == 0 && layer.intermediate_size % 2 == 0;
}

void lay_out_experts(const fiddler_layer& layer, const Ops& ops, Workspace& space) {
  const Grouping& grouping = space.grouping;
  space.experts.resize(grouping.experts.size());
  int64_t num_tiles = 0;
  for (size_t i = 0; i < grouping.experts.size(); ++i) {
    const int32_t e = grouping.experts[i];
    const int64_t rows = grouping.starts[i + 1] - grouping.starts[i];
    ExpertRows& expert = space.experts[i];
    expert = {layer.gate.weights ? matrix_of(layer.gate, e) : Matrix{}, matrix_of(layer.up, e),
              matrix_of(layer.down, e), layer.factor.weights ? matrix_of(layer.factor, e) : Matrix{},
              grouping.starts[i], rows, RowTiles{}, RowTiles{}};
    if (!ops.pack || rows < ops.min_panel_rows) continue;
    expert.hidden_tiles = tiles_of(rows, layer.hidden_size);
    expert.inner_tiles = tiles_of(rows, layer.intermediate_size);
    num_tiles += expert.hidden_tiles.num_tiles() + expert.inner_tiles.num_tiles();
  }
  unsigned char* tiles = space.tiles.reserve(num_tiles * RowTiles::bytes);
  for (ExpertRows& expert : space.experts) {
    for (RowTiles* rows : {&expert.hidden_tiles, &expert.inner_tiles}) {
      if (rows->num_blocks == 0) continue;
      rows->data = tiles;
      tiles += rows->num_tiles() * RowTiles::bytes;
    }
  }
}

void lay_out(const fiddler_layer& layer, const fiddler_message& message, const Ops& ops, Workspace& space, Job& job) {
  const Grouping& grouping = space.grouping;
  const size_t num_assignments = grouping.rows.size();
  const int64_t operand_bytes = element_bytes(ops.operand);
  lay_out_experts(layer, ops, space);
  const bool converts = ops.operand != message.hidden_dtype;
  const auto* hidden = static_cast<const unsigned char*>(message.hidden);
  if (converts) hidden = space.hidden.reserve(message.rows * layer.hidden_size * operand_bytes);
  // one cache line more than a row needs, so that rows do not all compete for the same lines of a cache
  const int64_t inner_pitch = (layer.intermediate_size * operand_bytes + 63) / 64 * 64 + 64;
  unsigned char* inner = space.inner.reserve(inner_pitch * static_cast<int64_t>(num_assignments) + 64);
  space.hidden_rows.resize(num_assignments);
  space.inner_rows.resize(num_assignments);
  for (size_t a = 0; a < num_assignments; ++a) {
    space.hidden_rows[a] = hidden + grouping.rows[a] * layer.hidden_size * operand_bytes;
    space.inner_rows[a] = inner + static_cast<int64_t>(a) * inner_pitch;
  }
  const bool sums_are_output = message.output_dtype == FIDDLER_FLOAT32;
  void* sums = message.output;
  if (!sums_are_output) sums = space.sums.reserve(message.rows * layer.hidden_size * 4);
  job = Job{message.rows, layer.hidden_size, layer.intermediate_size, layer.gate.weights != nullptr,
            layer.factor.weights != nullptr, layer.activation, layer.alpha, layer.limit, space.experts.data(),
            static_cast<int64_t>(space.experts.size()), grouping.rows.data(), grouping.weights.data(),
            space.hidden_rows.data(), space.inner_rows.data(), static_cast<float*>(sums),
            sums_are_output ? nullptr : message.output, message.output_dtype};
}

// One thread's share of packing all experts' hidden rows.
void pack_share(const Job& job, const Ops& ops, int64_t num_tiles, int index, int threads) {
  const int64_t first = num_tiles * index / threads, last = num_tiles * (index + 1) / threads;
  int64_t begin = 0;
  for (int64_t e = 0; e < job.num_experts; ++e) {
    const int64_t count = job.experts[e].hidden_tiles.num_tiles();
    const int64_t from = std::max(first - begin, int64_t{0}), to = std::min(last - begin, count);
    if (from < to) ops.pack(job, job.experts[e], from, to);
    begin += count;
  }
}

void compute(fiddler_pool& pool, const fiddler_message& message, const Ops& ops, Workspace& space, const Job& job) {
  const int64_t values = message.rows * job.hidden_size;
  const bool converts = ops.operand != message.hidden_dtype;
  auto* widened = converts ? reinterpret_cast<float*>(space.hidden.reserve(0)) : nullptr;
  const bool tiny = is_tiny(job, ops);
  const bool shares_conversion = converts && values >= min_values_to_share && !tiny;
  if (converts && !shares_conversion) widen(message.hidden, widened, 0, values);
  int64_t num_tiles = 0;
  for (int64_t e = 0; e < job.num_experts; ++e) num_tiles += job.experts[e].hidden_tiles.num_tiles();
  const int threads = tiny ? 1 : pool.size();
  plan_inner(job, ops, threads, pool.num_nodes(), space.inner_tasks);
  plan_outer(job, ops, threads, pool.num_nodes(), space.outer_tasks);
  Barrier prepared(threads), between(threads);
  const uint64_t number = next_message();
  const auto work = [&](int index) {
    Scratch& memory = scratch(number);
    // tiers that convert do not pack: there are two barriers at most
    if (shares_conversion) widen(message.hidden, widened, values * index / threads, values * (index + 1) / threads);
    if (num_tiles > 0) pack_share(job, ops, num_tiles, index, threads);
    if (shares_conversion || num_tiles > 0) prepared.wait();
    const int node = pool.node(index);
    space.inner_tasks.take(node, [&](const Task& task) {
      ops.inner(job, job.experts[task.expert], task.begin, task.end, memory);
    });
    between.wait();
    space.outer_tasks.take(node, [&](const Task& task) { ops.outer(job, task.begin, task.end, memory); });
  };
  if (tiny) {
    work(0);
  } else {
    pool.run(work);
  }
}

int32_t check(int32_t tier, const fiddler_layer* layer, const fiddler_message* message) {
  if (!layer || !message) return FIDDLER_NULL_POINTER;
  if (layer->num_experts < 1 || layer->hidden_size < 1 || layer->intermediate_size < 1) return FIDDLER_BAD_SIZE;
  if (message->rows < 0 || message->experts_per_row < 0) return FIDDLER_BAD_SIZE;
  if (is_null(layer->up, layer->num_experts) || is_null(layer->down, layer->num_experts)) return FIDDLER_NULL_POINTER;
  for (const auto& optional : {layer->gate, layer->factor}) {
    if (optional.weights && is_null(optional, layer->num_experts)) return FIDDLER_NULL_POINTER;
  }
  for (const auto& projection : {layer->gate, layer->up, layer->down, layer->factor}) {
    const int32_t status = check_coding(projection, layer->weight_dtype >= FIDDLER_FIRST_CODE);
    if (status != FIDDLER_OK) return status;
  }
  if (layer->activation < 0 || layer->activation > FIDDLER_CLAMPED_SILU) return FIDDLER_BAD_DTYPE;
  if (layer->activation >= FIDDLER_CLAMPED_SWIGLU && !layer->gate.weights) return FIDDLER_NULL_POINTER;
  for (int32_t dtype : {message->hidden_dtype, message->output_dtype}) {
    if (dtype != FIDDLER_FLOAT32 && dtype != FIDDLER_BFLOAT16) return FIDDLER_BAD_DTYPE;
  }
  if (!has_tier(tier)) return FIDDLER_BAD_TIER;
  if (message->rows == 0) return FIDDLER_OK;
  if (!message->hidden || !message->output) return FIDDLER_NULL_POINTER;
  if (message->experts_per_row > 0 && (!message->expert_ids || !message->routing_weights)) return FIDDLER_NULL_POINTER;
  const bool aligned = is_aligned(message->hidden, element_bytes(message->hidden_dtype)) &&
                       is_aligned(message->output, element_bytes(message->output_dtype)) &&
                       is_aligned(message->expert_ids, 4) && is_aligned(message->routing_weights, 4);
  return aligned ? FIDDLER_OK : FIDDLER_MISALIGNED;
}

}  // namespace
}  // namespace fiddler

extern "C" int32_t fiddler_run(fiddler_pool* pool, int32_t tier, const fiddler_layer* layer,
                               const fiddler_message* message) {
  using namespace fiddler;
  if (!pool) return FIDDLER_NULL_POINTER;
  if (const int32_t status = check(tier, layer, message)) return status;
  const Ops* ops = ops_for(tier, layer->weight_dtype, message->hidden_dtype, is_regular(*layer));
  if (!ops) return FIDDLER_BAD_DTYPE;
  if (message->rows == 0) return FIDDLER_OK;
  if (!pool->enter()) return FIDDLER_BUSY;
  int32_t status = FIDDLER_OK;
  try {
    thread_local Workspace space;
    if (space.grouping.group(*message, layer->num_experts)) {
      Job job;
      lay_out(*layer, *message, *ops, space, job);
      compute(*pool, *message, *ops, space, job);
    } else {
      status = FIDDLER_BAD_EXPERT_ID;
    }
  } catch (const std::bad_alloc&) {
    status = FIDDLER_NO_MEMORY;
  }
  pool->leave();
  return status;
}
