// fiddler_multiply: a matrix times rows is the second pass of a layer with one expert, which all rows go to.

#include <numeric>
#include <optional>
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

// One product, as all threads of a call compute it.
class Part {
 public:
  Part(const fiddler_product& product, const Ops& ops, Space& space, int threads, int num_nodes)
      : product_(product),
        ops_(ops),
        space_(space),
        job_(lay_out(product, ops, space)),
        packing_(job_),
        threads_(threads),
        converts_(ops.operand != product.input_dtype),
        shares_conversion_(converts_ && threads > 1 && num_values() >= min_values_to_share),
        number_(next_message()),
        prepared_(threads) {
    // what is packed is a layer's hidden rows, which have the inputs' size
    packing_.hidden_size = product.inputs;
    packing_.hidden_rows = const_cast<const void* const*>(job_.inner_rows);
    if (converts_ && !shares_conversion_) widen(product.input, widened(), 0, num_values());
    plan_outer(job_, ops, threads, num_nodes, space.tasks);
  }

  void work(int index, int node) {
    Scratch& memory = scratch(number_);
    if (shares_conversion_) {
      widen(product_.input, widened(), num_values() * index / threads_, num_values() * (index + 1) / threads_);
    }
    const int64_t num_tiles = space_.expert.hidden_tiles.num_tiles();
    if (num_tiles > 0) {
      const int64_t first = num_tiles * index / threads_, last = num_tiles * (index + 1) / threads_;
      if (first < last) ops_.pack(packing_, space_.expert, first, last);
    }
    if (shares_conversion_ || num_tiles > 0) prepared_.wait();
    space_.tasks.take(node, [&](const Task& task) { ops_.outer(job_, task.begin, task.end, memory); });
  }

 private:
  int64_t num_values() const { return product_.rows * product_.inputs; }
  float* widened() const { return reinterpret_cast<float*>(space_.widened.reserve(0)); }

  const fiddler_product& product_;
  const Ops& ops_;
  Space& space_;
  Job job_;
  Job packing_;
  int threads_;
  bool converts_;
  bool shares_conversion_;
  uint64_t number_;
  Barrier prepared_;
};

bool is_tiny(const fiddler_product& product, const Ops& ops) {
  Job job = {};
  ExpertRows expert = {};
  expert.down = matrix_of(product.weights, 0);
  expert.count = product.rows;
  job.rows = product.rows;
  job.hidden_size = product.outputs;
  job.intermediate_size = product.inputs;
  job.experts = &expert;
  job.num_experts = 1;
  return is_tiny_outer(job, ops);
}

// Threads go from one product to the next without sleeping in between.
void compute(fiddler_pool& pool, const fiddler_product* const* products, const Ops* const* ops, int32_t count) {
  thread_local Space spaces[FIDDLER_MOST_PRODUCTS];
  bool tiny = true;
  for (int32_t i = 0; i < count; ++i) tiny = tiny && is_tiny(*products[i], *ops[i]);
  std::optional<Part> parts[FIDDLER_MOST_PRODUCTS];
  for (int32_t i = 0; i < count; ++i) {
    parts[i].emplace(*products[i], *ops[i], spaces[i], tiny ? 1 : pool.size(), pool.num_nodes());
  }
  const auto work = [&](int index) {
    for (int32_t i = 0; i < count; ++i) parts[i]->work(index, pool.node(index));
  };
  if (tiny) {
    work(0);
  } else {
    pool.run(work);
  }
}

}  // namespace
}  // namespace fiddler

extern "C" int32_t fiddler_multiply(fiddler_pool* pool, int32_t tier, const fiddler_product* const* products,
                                    int32_t count) {
  using namespace fiddler;
  if (!pool || !products) return FIDDLER_NULL_POINTER;
  if (count < 1 || count > FIDDLER_MOST_PRODUCTS) return FIDDLER_BAD_SIZE;
  const Ops* ops[FIDDLER_MOST_PRODUCTS];
  for (int32_t i = 0; i < count; ++i) {
    const fiddler_product* product = products[i];
    if (const int32_t status = check(tier, product)) return status;
    if (product->rows == 0) return FIDDLER_OK;
    const bool is_regular = product->weights.in_stride == 1 && product->inputs % 2 == 0;
    ops[i] = ops_for(tier, product->weight_dtype, product->input_dtype, is_regular);
    if (!ops[i]) return FIDDLER_BAD_DTYPE;
  }
  if (!pool->enter()) return FIDDLER_BUSY;
  int32_t status = FIDDLER_OK;
  try {
    compute(*pool, products, ops, count);
  } catch (const std::bad_alloc&) {
    status = FIDDLER_NO_MEMORY;
  }
  pool->leave();
  return status;
}
