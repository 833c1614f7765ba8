// fiddler_multiply: a matrix times rows is the second pass of a layer with one expert, which all rows go to.

#include <numeric>
#include <vector>

#include "dispatch.h"
#include "calls/interface.h"
#include "plan.h"
#include "pool.h"

namespace fiddler {
namespace {

// Memory that is kept from one product to the next. Each calling thread has its own.
struct Space {
  std::vector<int32_t> numbers;
  std::vector<float> ones;
  std::vector<void*> rows;
  Buffer widened, sums, tiles;
  TaskList tasks;
  ExpertRows expert;
};

int32_t check(int32_t tier, const fiddler_product* product) {
  if (!product) return FIDDLER_NULL_POINTER;
  if (product->outputs < 1 || product->inputs < 1 || product->rows < 0 || product->rows > INT32_MAX) {
    return FIDDLER_BAD_SIZE;
  }
  if (is_null(product->weights, 1)) return FIDDLER_NULL_POINTER;
  if (const int32_t status = check_coding(product->weights, product->weight_dtype >= FIDDLER_FIRST_CODE)) return status;
  for (int32_t dtype : {product->input_dtype, product->output_dtype}) {
    if (dtype != FIDDLER_FLOAT32 && dtype != FIDDLER_BFLOAT16) return FIDDLER_BAD_DTYPE;
  }
  if (!has_tier(tier)) return FIDDLER_BAD_TIER;
  if (product->rows == 0) return FIDDLER_OK;
  if (!product->input || !product->output) return FIDDLER_NULL_POINTER;
  const bool aligned = is_aligned(product->input, element_bytes(product->input_dtype)) &&
                       is_aligned(product->output, element_bytes(product->output_dtype));
  return aligned ? FIDDLER_OK : FIDDLER_MISALIGNED;
}

Job lay_out(const fiddler_product& product, const Ops& ops, Space& space) {
  const auto num_rows = static_cast<size_t>(product.rows);
  if (space.numbers.size() < num_rows) {
    space.ones.assign(num_rows, 1.0f);
    space.rows.resize(num_rows);
    space.numbers.resize(num_rows);
    std::iota(space.numbers.begin(), space.numbers.end(), 0);
  }
  const int64_t row_bytes = product.inputs * element_bytes(ops.operand);
  // rows are read and never written
  auto* input = static_cast<unsigned char*>(const_cast<void*>(product.input));
  if (ops.operand != product.input_dtype) input = space.widened.reserve(product.rows * row_bytes);
  for (size_t r = 0; r < num_rows; ++r) space.rows[r] = input + static_cast<int64_t>(r) * row_bytes;
  space.expert = {};
  space.expert.down = matrix_of(product.weights, 0);
  space.expert.count = product.rows;
  if (ops.pack && product.rows >= ops.min_panel_rows) {
    RowTiles tiles = tiles_of(product.rows, product.inputs);
    tiles.data = space.tiles.reserve(tiles.num_tiles() * RowTiles::bytes);
    space.expert.hidden_tiles = space.expert.inner_tiles = tiles;
  }
  const bool sums_are_output = product.output_dtype == FIDDLER_FLOAT32;
  void* sums = product.output;
  if (!sums_are_output) sums = space.sums.reserve(product.rows * product.outputs * 4);
  Job job = {};
  job.rows = product.rows;
  job.hidden_size = product.outputs;
  job.intermediate_size = product.inputs;
  job.experts = &space.expert;
  job.num_experts = 1;
  job.row = space.numbers.data();
  job.weight = space.ones.data();
  job.inner_rows = space.rows.data();
  job.sums = static_cast<float*>(sums);
  job.output = sums_are_output ? nullptr : product.output;
  job.output_dtype = product.output_dtype;
  return job;
}

void compute(fiddler_pool& pool, const fiddler_product& product, const Ops& ops, Space& space, const Job& job) {
  const bool tiny = is_tiny_outer(job, ops);
  const int threads = tiny ? 1 : pool.size();
  const int64_t values = product.rows * product.inputs;
  const bool converts = ops.operand != product.input_dtype;
  auto* widened = converts ? reinterpret_cast<float*>(space.widened.reserve(0)) : nullptr;
  const bool shares_conversion = converts && values >= min_values_to_share && !tiny;
  if (converts && !shares_conversion) widen(product.input, widened, 0, values);
  // what is packed is a layer's hidden rows, which have the inputs' size
  Job packing = job;
  packing.hidden_size = product.inputs;
  packing.hidden_rows = const_cast<const void* const*>(job.inner_rows);
  const int64_t num_tiles = space.expert.hidden_tiles.num_tiles();
  plan_outer(job, ops, threads, pool.num_nodes(), space.tasks);
  Barrier prepared(threads);
  const uint64_t number = next_message();
  const auto work = [&](int index) {
    Scratch& memory = scratch(number);
    if (shares_conversion) widen(product.input, widened, values * index / threads, values * (index + 1) / threads);
    if (num_tiles > 0) {
      const int64_t first = num_tiles * index / threads, last = num_tiles * (index + 1) / threads;
      if (first < last) ops.pack(packing, space.expert, first, last);
    }
    if (shares_conversion || num_tiles > 0) prepared.wait();
    space.tasks.take(pool.node(index), [&](const Task& task) { ops.outer(job, task.begin, task.end, memory); });
  };
  if (tiny) {
    work(0);
  } else {
    pool.run(work);
  }
}

}  // namespace
}  // namespace fiddler

extern "C" int32_t fiddler_multiply(fiddler_pool* pool, int32_t tier, const fiddler_product* product) {
  using namespace fiddler;
  if (!pool) return FIDDLER_NULL_POINTER;
  if (const int32_t status = check(tier, product)) return status;
  const bool is_regular = product->weights.in_stride == 1 && product->inputs % 2 == 0;
  const Ops* ops = ops_for(tier, product->weight_dtype, product->input_dtype, is_regular);
  if (!ops) return FIDDLER_BAD_DTYPE;
  if (product->rows == 0) return FIDDLER_OK;
  if (!pool->enter()) return FIDDLER_BUSY;
  int32_t status = FIDDLER_OK;
  try {
    thread_local Space space;
    compute(*pool, *product, *ops, space, lay_out(*product, *ops, space));
  } catch (const std::bad_alloc&) {
    status = FIDDLER_NO_MEMORY;
  }
  pool->leave();
  return status;
}
