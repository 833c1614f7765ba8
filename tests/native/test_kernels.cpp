// Tests the C interface without Python, for the sanitizers: every tier of this CPU, all formats and layouts, odd sizes,
// memory that ends with the data. Tiers are compared with the scalar one; test_native_kernel.py bounds their errors.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "layers.h"
#include "plan.h"
#include "products.h"

namespace {

constexpr int32_t scalar_tier = 0;

int failures = 0;

void expect(bool condition, const char* what, int64_t detail = 0) {
  if (condition) return;
  std::fprintf(stderr, "failed: %s (%lld)\n", what, static_cast<long long>(detail));
  ++failures;
}

// The number of a tier; -1 if the library has none of this name.
int32_t find_tier(const std::string& name) {
  for (int32_t tier = 0; fiddler_tier_name(tier); ++tier) {
    if (name == fiddler_tier_name(tier)) return tier;
  }
  return -1;
}

std::vector<float> run(fiddler_pool* pool, int32_t tier, const Layer& layer, const Shape& shape, int32_t hidden_dtype) {
  Random random;
  random.state = 7;
  const auto hidden = stored(hidden_dtype, shape.rows * shape.hidden, 0, 1.0f, random);
  std::vector<int32_t> ids;
  std::vector<float> weights;
  for (int64_t i = 0; i < shape.rows * shape.k; ++i) {
    ids.push_back(static_cast<int32_t>(i * 7 % (shape.num_experts + 1)) - 1);
    weights.push_back(random.next());
  }
  std::vector<float> output(static_cast<size_t>(shape.rows * shape.hidden), NAN);
  const fiddler_message message = {shape.rows, shape.k, hidden.get(), ids.data(), weights.data(), output.data(),
                                   hidden_dtype, FIDDLER_FLOAT32};
  expect(fiddler_run(pool, tier, &layer.layer, &message) == FIDDLER_OK, "fiddler_run", tier);
  return output;
}

void compare_tiers(fiddler_pool* pool) {
  const Shape shapes[] = {{1, 2, 2, 64, 96}, {3, 2, 3, 33, 7},    {8, 1, 1, 130, 66}, {13, 2, 4, 66, 130},
                          {40, 2, 2, 70, 64}, {300, 1, 2, 34, 98}, {1, 1, 1, 1, 1},    {5, 1, 1, 14338, 18}};
  for (const Shape& shape : shapes) {
    for (int32_t dtype = 0; dtype < 3; ++dtype) {
      for (int variant = 0; variant < 16; ++variant) {
        const Layer layer(shape, dtype, variant & 1, variant & 2, variant & 4, variant & 8, variant & 4 ? 1 : 2);
        for (int32_t hidden_dtype : {FIDDLER_FLOAT32, FIDDLER_BFLOAT16}) {
          const auto expected = run(pool, scalar_tier, layer, shape, hidden_dtype);
          for (int32_t tier = 1; fiddler_tier_name(tier); ++tier) {
            if (!fiddler_has_tier(tier)) continue;
            const auto actual = run(pool, tier, layer, shape, hidden_dtype);
            float worst = 0;
            for (size_t i = 0; i < expected.size(); ++i) worst = std::max(worst, std::abs(actual[i] - expected[i]));
            expect(worst < 0.02f, "a tier differs from the scalar one", tier);
          }
        }
      }
    }
  }
}

void multiply(fiddler_pool* pool) {
  const ProductCase cases[] = {{1, 1, 1}, {1, 202, 67}, {3, 33, 5}, {8, 256, 130}, {17, 70, 64}, {300, 34, 98}};
  const int32_t formats[] = {FIDDLER_FLOAT32, FIDDLER_BFLOAT16, FIDDLER_FLOAT16, FIDDLER_INT8};
  for (const ProductCase& c : cases) {
    for (int32_t weight_dtype : formats) {
      for (int32_t input_dtype : {FIDDLER_FLOAT32, FIDDLER_BFLOAT16}) {
        for (int32_t tier = 0; fiddler_tier_name(tier); ++tier) {
          if (!fiddler_has_tier(tier)) continue;
          // many rows of bfloat16 are multiplied with decoded weights that are rounded to it
          const double bound = input_dtype == FIDDLER_FLOAT32 ? 1e-6 : 0.004;
          const double error = product_error(pool, tier, c, weight_dtype, input_dtype, c.rows != 3);
          expect(error < bound, "a product is wrong", tier);
        }
      }
    }
  }
  fiddler_product product = {};
  const fiddler_product* products[] = {nullptr, &product};
  expect(fiddler_multiply(pool, scalar_tier, nullptr, 1) == FIDDLER_NULL_POINTER, "no products");
  expect(fiddler_multiply(pool, scalar_tier, products, 0) == FIDDLER_BAD_SIZE, "no product at all");
  expect(fiddler_multiply(pool, scalar_tier, products, FIDDLER_MOST_PRODUCTS + 1) == FIDDLER_BAD_SIZE, "too many");
  expect(fiddler_multiply(pool, scalar_tier, products, 1) == FIDDLER_NULL_POINTER, "no product");
  expect(fiddler_multiply(pool, scalar_tier, products + 1, 1) == FIDDLER_BAD_SIZE, "a product without sizes");
  product.outputs = product.inputs = product.rows = 1;
  expect(fiddler_multiply(pool, scalar_tier, products + 1, 1) == FIDDLER_NULL_POINTER, "a product without weights");
}

void refuse(fiddler_pool* pool) {
  const Shape shape = {1, 1, 1, 8, 8};
  const Layer good(shape, FIDDLER_BFLOAT16, false, true, false, false, 0);
  float hidden[8] = {}, output[8], weight = 1;
  int32_t id = 0;
  const fiddler_message message = {1, 1, hidden, &id, &weight, output, FIDDLER_FLOAT32, FIDDLER_FLOAT32};
  const auto status = [&](auto change) {
    fiddler_layer layer = good.layer;
    fiddler_message changed = message;
    change(layer, changed);
    return fiddler_run(pool, scalar_tier, &layer, &changed);
  };
  using L = fiddler_layer&;
  using M = fiddler_message&;
  expect(status([](L, M) {}) == FIDDLER_OK, "a good message");
  expect(status([](L, M m) { m.hidden = nullptr; }) == FIDDLER_NULL_POINTER, "no hidden rows");
  expect(status([](L, M m) { m.output = nullptr; }) == FIDDLER_NULL_POINTER, "no output");
  expect(status([](L, M m) { m.expert_ids = nullptr; }) == FIDDLER_NULL_POINTER, "no expert ids");
  expect(status([](L l, M) { l.up.weights = nullptr; }) == FIDDLER_NULL_POINTER, "no weights");
  expect(status([](L l, M) { l.hidden_size = 0; }) == FIDDLER_BAD_SIZE, "no hidden size");
  expect(status([](L, M m) { m.rows = -1; }) == FIDDLER_BAD_SIZE, "negative rows");
  expect(status([](L, M m) { m.hidden_dtype = FIDDLER_FLOAT16; }) == FIDDLER_BAD_DTYPE, "float16 rows");
  expect(status([](L l, M) { l.weight_dtype = -1; }) == FIDDLER_BAD_DTYPE, "an unknown dtype");
  expect(status([](L l, M) { l.weight_dtype = FIDDLER_E4M3; }) == FIDDLER_NULL_POINTER, "codes without scales");
  expect(status([](L l, M) { l.up.scales = l.up.weights; }) == FIDDLER_BAD_DTYPE, "plain weights with scales");
  expect(status([](L l, M) { l.activation = 7; }) == FIDDLER_BAD_DTYPE, "an unknown activation");
  const auto misaligned = [](L, M m) { m.hidden = static_cast<const char*>(m.hidden) + 1; };
  expect(status(misaligned) == FIDDLER_MISALIGNED, "misaligned rows");
  id = 1;
  expect(status([](L, M) {}) == FIDDLER_BAD_EXPERT_ID, "an expert that is not there");
  id = 0;
  expect(fiddler_run(nullptr, 0, &good.layer, &message) == FIDDLER_NULL_POINTER, "no pool");
  for (int32_t tier : {-1, 1000}) {
    expect(fiddler_run(pool, tier, &good.layer, &message) == FIDDLER_BAD_TIER, "an unknown tier", tier);
    expect(!fiddler_tier_name(tier) && !fiddler_has_tier(tier), "the name of an unknown tier", tier);
  }
  expect(fiddler_pool_create(nullptr, nullptr, 1, 0) == nullptr, "a pool of nothing");
}

void name() {
  expect(find_tier("scalar") == scalar_tier && fiddler_has_tier(scalar_tier), "the scalar tier");
  expect(fiddler_dtype_name(FIDDLER_FLOAT16) && !fiddler_dtype_name(FIDDLER_FLOAT16 + 1), "names of dtypes");
  expect(!fiddler_activation_name(-1) && !fiddler_activation_name(FIDDLER_CLAMPED_SILU + 1), "names of activations");
  expect(std::string("there is not enough memory") == fiddler_status_text(FIDDLER_NO_MEMORY), "texts of statuses");
  expect(!fiddler_status_text(FIDDLER_NOT_FINITE + 1), "texts of unknown statuses");
}

void move_memory(fiddler_pool* pool) {
  std::vector<unsigned char> from(5'000'003), to(from.size());
  for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<unsigned char>(i * 31);
  void* destination = to.data();
  const void* source = from.data();
  const auto bytes = static_cast<int64_t>(from.size());
  const int32_t node = 0;
  expect(fiddler_copy(pool, &destination, &source, &bytes, &node, 1) == FIDDLER_OK && to == from, "a copy");
  for (int32_t streams : {1, 2, 4, 8, 16}) fiddler_read(pool, from.data() + 1, bytes - 1, streams);
}

// Several threads call at once: each is served, or gets the status that the pool is busy, and none waits for ever.
void crowd(fiddler_pool* pool) {
  const Shape shape = {2, 1, 2, 256, 512};
  const Layer layer(shape, FIDDLER_BFLOAT16, false, true, false, false, 0);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([&] {
      float hidden[512] = {}, output[512], weights[2] = {1, 1};
      int32_t ids[2] = {0, 1};
      const fiddler_message message = {2, 1, hidden, ids, weights, output, FIDDLER_FLOAT32, FIDDLER_FLOAT32};
      for (int i = 0; i < 300; ++i) {
        const int32_t status = fiddler_run(pool, scalar_tier, &layer.layer, &message);
        if (status != FIDDLER_OK && status != FIDDLER_BUSY) std::abort();
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
}

}  // namespace

#ifdef FIDDLER_EMULATED_AMX
namespace fiddler {
extern const Ops emulated_amx, bf16_scalar;
extern const Ops emulated_coded_amx[], coded_scalar[];

// One expert's sums by a tier's projections, for hidden rows that bfloat16 holds exactly.
std::vector<float> compute(const Ops& ops, const fiddler_layer& l, const ExpertRows& plain, const Shape& shape,
                           int64_t rows, bool has_factor) {
  Random random;
  const int64_t bytes = ops.operand == FIDDLER_FLOAT32 ? 4 : 2;
  std::vector<float> values(static_cast<size_t>(rows * shape.hidden)), sums(values.size(), NAN);
  for (float& value : values) {
    value = std::bit_cast<float>(std::bit_cast<uint32_t>(random.next()) & 0xffff0000u);
  }
  std::vector<Bf16> narrow(values.size());
  for (size_t i = 0; i < values.size(); ++i) from_float(values[i], &narrow[i]);
  const auto* hidden =
      bytes == 4 ? reinterpret_cast<const char*>(values.data()) : reinterpret_cast<const char*>(narrow.data());
  std::vector<float> inner(static_cast<size_t>(rows * shape.intermediate));
  std::vector<const void*> hidden_rows;
  std::vector<void*> inner_rows;
  std::vector<int32_t> row;
  for (int64_t a = 0; a < rows; ++a) {
    hidden_rows.push_back(hidden + a * shape.hidden * bytes);
    inner_rows.push_back(reinterpret_cast<char*>(inner.data()) + a * shape.intermediate * bytes);
    row.push_back(static_cast<int32_t>(a));
  }
  ExpertRows expert = plain;
  std::vector<unsigned char> tiles;
  if (ops.pack) {
    expert.hidden_tiles = tiles_of(rows, shape.hidden);
    expert.inner_tiles = tiles_of(rows, shape.intermediate);
    const auto hidden_bytes = expert.hidden_tiles.num_tiles() * RowTiles::bytes;
    tiles.resize(static_cast<size_t>(hidden_bytes + expert.inner_tiles.num_tiles() * RowTiles::bytes));
    expert.hidden_tiles.data = tiles.data();
    expert.inner_tiles.data = tiles.data() + hidden_bytes;
  }
  const std::vector<float> weight(row.size(), 1.0f);
  const Job job = {rows, shape.hidden, shape.intermediate, l.gate.weights != nullptr, has_factor, FIDDLER_SILU,
                   0, 0, &expert, 1, row.data(), weight.data(), hidden_rows.data(), inner_rows.data(),
                   sums.data(), nullptr, FIDDLER_FLOAT32};
  const auto scratch = std::make_unique<Scratch>();
  if (ops.pack) ops.pack(job, expert, 0, expert.hidden_tiles.num_tiles());
  ops.inner(job, expert, 0, 64, *scratch);
  ops.inner(job, expert, 64, shape.intermediate, *scratch);
  ops.outer(job, 0, 192, *scratch);
  ops.outer(job, 192, shape.hidden, *scratch);
  return sums;
}

void expect_alike(const std::vector<float>& expected, const std::vector<float>& actual, const char* what, int64_t rows) {
  float worst = 0, largest = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    worst = std::max(worst, std::abs(expected[i] - actual[i]));
    largest = std::max(largest, std::abs(expected[i]));
  }
  expect(worst < 0.02f * std::max(1.0f, largest), what, rows);
}

// One expert's projections by emulated tiles and by the scalar tier's loops.
void compare_emulated_tiles() {
  for (int64_t rows : {1, 13, 32, 47, 256, 300}) {
    const Shape shape = {rows, 1, 1, 290, 134};
    for (bool has_factor : {false, true}) {
      Layer layer(shape, FIDDLER_BFLOAT16, false, !has_factor, true, has_factor, 2);
      const auto matrix = [](const fiddler_projection& p) {
        if (!p.weights) return Matrix{};
        const float* bias = p.biases ? p.biases[0] : nullptr;
        return Matrix{static_cast<const unsigned char*>(p.weights[0]), bias, p.out_stride, p.in_stride, {}};
      };
      const fiddler_layer& l = layer.layer;
      const ExpertRows plain = {matrix(l.gate), matrix(l.up), matrix(l.down), matrix(l.factor), 0, rows, {}, {}};
      expect_alike(compute(bf16_scalar, l, plain, shape, rows, has_factor),
                   compute(emulated_amx, l, plain, shape, rows, has_factor),
                   "emulated tiles differ from the scalar tier", rows);
    }
  }
}

// The same of codes, with scales for whole rows and for blocks, whose weights are decoded into tiles.
void compare_emulated_codes() {
  constexpr int64_t hidden = 290, intermediate = 134;
  Random random;
  std::vector<unsigned char> codes(static_cast<size_t>(3 * hidden * intermediate));
  for (unsigned char& code : codes) code = static_cast<unsigned char>((random.next() + 1.0f) * 120.0f) & 0x77u;
  const std::vector<float> scales(static_cast<size_t>(hidden), 0.002f);
  for (int32_t code = FIDDLER_FIRST_CODE; code < FIDDLER_NUM_FORMATS; ++code) {
    const int64_t bits = code == FIDDLER_UINT4 || code == FIDDLER_E2M1 ? 4 : 8;
    const auto matrix = [&](int64_t number, int64_t inputs) {
      const int64_t group = code == FIDDLER_E4M3 ? 128 : inputs, outputs = code == FIDDLER_E4M3 ? 128 : 1;
      const Coding coding = {reinterpret_cast<const unsigned char*>(scales.data()), nullptr, 1.0f,
                             (inputs + group - 1) / group, group, outputs, 0, FIDDLER_SCALE_FLOAT32};
      return Matrix{codes.data() + number * hidden * intermediate, nullptr, inputs * bits / 8, 1, coding};
    };
    for (int64_t rows : {1, 3, 5, 47, 300}) {
      const Shape shape = {rows, 1, 1, hidden, intermediate};
      Layer layer(shape, FIDDLER_BFLOAT16, false, true, false, false, 2);
      const ExpertRows coded = {matrix(0, hidden), matrix(1, hidden), matrix(2, intermediate), {}, 0, rows, {}, {}};
      const int32_t place = code - FIDDLER_FIRST_CODE;
      expect_alike(compute(coded_scalar[place], layer.layer, coded, shape, rows, false),
                   compute(emulated_coded_amx[place], layer.layer, coded, shape, rows, false),
                   "emulated tiles of codes differ from the scalar tier", rows);
    }
  }
}
}  // namespace fiddler
#endif

int main() {
  name();
  for (int32_t threads : {1, 2, 5}) {
    const int32_t cpus[] = {0, 1, 2, 3, 4}, nodes[] = {0, 1, 0, 1, 0};
    fiddler_pool* pool = fiddler_pool_create(cpus, nodes, threads, 20);
    expect(pool != nullptr, "a pool", threads);
    if (threads < 5) compare_tiers(pool);
    multiply(pool);
    refuse(pool);
    move_memory(pool);
    crowd(pool);
    fiddler_pool_destroy(pool);
  }
#ifdef FIDDLER_EMULATED_AMX
  if (fiddler_has_tier(find_tier("avx512_bf16"))) {
    fiddler::compare_emulated_tiles();
    fiddler::compare_emulated_codes();
  }
#endif
  std::printf("%s\n", failures ? "FAILED" : "all native tests passed");
  return failures != 0;
}
