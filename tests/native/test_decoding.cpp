// Tests what decode steps compute between experts without Python, for the sanitizers: every tier of this CPU, odd
// sizes, memory that ends with the data. Tiers are compared with the scalar one; tests/fiddler/kernels bounds their
// errors.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "abi.h"
#include "formats.h"
#include "segment/abi.h"

namespace {

using fiddler::Bf16;

constexpr int32_t scalar_tier = 0;

int failures = 0;

void expect(bool condition, const char* what, int64_t detail = 0) {
  if (condition) return;
  std::fprintf(stderr, "failed: %s (%lld)\n", what, static_cast<long long>(detail));
  ++failures;
}

// Numbers around 0 that are the same in every run.
class Numbers {
 public:
  std::vector<Bf16> bf16(int64_t count, float scale = 1.0f, float around = 0.0f) {
    std::vector<Bf16> values(static_cast<size_t>(count));
    for (Bf16& value : values) fiddler::from_float(around + scale * next(), &value);
    return values;
  }

  float next() {
    state_ = state_ * 1664525u + 1013904223u;
    return static_cast<float>(state_ >> 8) / (1 << 23) - 1.0f;
  }

 private:
  uint32_t state_ = 7;
};

void expect_alike(const std::vector<Bf16>& one, const std::vector<Bf16>& other, const char* what, int64_t detail) {
  float worst = 0.0f;
  for (size_t i = 0; i < one.size(); ++i) {
    worst = std::max(worst, std::abs(fiddler::to_float(&one[i]) - fiddler::to_float(&other[i])));
  }
  expect(one.size() == other.size() && worst < 0.05f, what, detail);
}

struct Sizes {
  int64_t rows, hidden, heads, kv_heads, size, turned, length;
  bool has_norms, shares_angles, sees_all;
};

// One linear layer of bfloat16.
struct Linear {
  Linear(int64_t outputs, int64_t inputs, Numbers& numbers)
      : weights(numbers.bf16(outputs * inputs, 1.0f / std::sqrt(static_cast<float>(inputs)))), address(weights.data()) {
    product.weights.weights = &address;
    product.weights.out_stride = inputs;
    product.weights.in_stride = 1;
    product.outputs = outputs;
    product.inputs = inputs;
    product.weight_dtype = FIDDLER_BFLOAT16;
  }
  Linear(const Linear&) = delete;

  std::vector<Bf16> weights;
  const void* address;
  fiddler_product product = {};
};

struct Layer {
  explicit Layer(const Sizes& sizes) : s(sizes) {
    block.query = query.product;
    block.key = key.product;
    block.value = value.product;
    block.out = out.product;
    block.before = block.after = {norm.data(), s.hidden, 1e-5f, 1};
    if (s.has_norms) block.query_norm = block.key_norm = {head_norm.data(), s.size, 1e-5f, 0};
    block.positions = positions.data();
    block.angles = s.shares_angles ? s.turned / 2 : s.turned;
    block.turned = s.turned;
    block.cosines = cosines.data();
    block.sines = sines.data();
    block.hidden = hidden.data();
    block.residual = residual.data();
    block.normed = normed.data();
    fiddler_attention& attention = block.attention;
    attention.rows = s.rows;
    attention.heads = s.heads;
    attention.kv_heads = s.kv_heads;
    attention.length = s.length;
    attention.key_size = attention.value_size = s.size;
    attention.keys = keys.data();
    attention.values = values.data();
    attention.key_row_stride = attention.value_row_stride = s.kv_heads * s.length * s.size;
    attention.key_head_stride = attention.value_head_stride = s.length * s.size;
    attention.key_stride = attention.value_stride = s.size;
    attention.visible = s.sees_all ? nullptr : visible.data();
    attention.visible_stride = s.length;
    attention.scale = 0.25f;
    attention.dtype = FIDDLER_BFLOAT16;
    for (int64_t r = 0; r < s.rows; ++r) {
      const int64_t position = positions[static_cast<size_t>(r)] = (r * 5 + 3) % s.length;
      std::fill_n(visible.begin() + r * s.length, position + 1, uint8_t{1});
    }
  }
  Layer(const Layer&) = delete;

  Sizes s;
  Numbers numbers;
  Linear query{s.heads * s.size, s.hidden, numbers}, key{s.kv_heads * s.size, s.hidden, numbers};
  Linear value{s.kv_heads * s.size, s.hidden, numbers}, out{s.hidden, s.heads * s.size, numbers};
  std::vector<Bf16> norm = numbers.bf16(s.hidden, 0.1f, 1.0f), head_norm = numbers.bf16(s.size, 0.1f, 1.0f);
  std::vector<Bf16> hidden = numbers.bf16(s.rows * s.hidden);
  std::vector<Bf16> keys = numbers.bf16(s.rows * s.kv_heads * s.length * s.size), values = keys;
  std::vector<Bf16> cosines = numbers.bf16(s.rows * s.turned), sines = numbers.bf16(s.rows * s.turned);
  std::vector<Bf16> residual = hidden, normed = hidden;
  std::vector<int64_t> positions = std::vector<int64_t>(static_cast<size_t>(s.rows));
  std::vector<uint8_t> visible = std::vector<uint8_t>(static_cast<size_t>(s.rows * s.length));
  fiddler_attention_block block = {};
};

void compute_blocks(fiddler_pool* pool) {
  const Sizes cases[] = {{1, 64, 4, 2, 16, 16, 1, false, false, true},   {3, 96, 6, 2, 32, 32, 700, true, false, false},
                         {2, 130, 4, 4, 18, 18, 65, false, true, false}, {5, 54, 3, 1, 34, 20, 130, true, false, false},
                         {1, 2, 1, 1, 2, 2, 3, false, false, true}};
  for (const Sizes& sizes : cases) {
    Layer due(sizes);
    expect(fiddler_attend_block(pool, scalar_tier, &due.block) == FIDDLER_OK, "fiddler_attend_block", sizes.hidden);
    for (int32_t tier = 1; fiddler_tier_name(tier); ++tier) {
      if (!fiddler_has_tier(tier)) continue;
      Layer layer(sizes);
      expect(fiddler_attend_block(pool, tier, &layer.block) == FIDDLER_OK, "fiddler_attend_block", tier);
      expect_alike(layer.residual, due.residual, "sums of a tier differ from the scalar one's", tier);
      expect_alike(layer.keys, due.keys, "keys of a tier differ from the scalar one's", tier);
      expect_alike(layer.values, due.values, "values of a tier differ from the scalar one's", tier);
    }
  }
}

// The choice of experts in the call that computes the rows, and by itself.
void route_blocks(fiddler_pool* pool) {
  for (int32_t tier = 0; fiddler_tier_name(tier); ++tier) {
    if (!fiddler_has_tier(tier)) continue;
    Layer layer({3, 96, 6, 2, 32, 32, 70, true, false, false});
    const int64_t experts = 10, k = 4, chosen = layer.s.rows * k;
    const Linear gate(experts, layer.s.hidden, layer.numbers);
    const fiddler_router router = {gate.product, k, FIDDLER_SOFTMAX, 0, 1, 1, 0.0f, 1.0f, nullptr, 1, 1};
    std::vector<float> logits(static_cast<size_t>(layer.s.rows * experts)), weights(static_cast<size_t>(chosen));
    std::vector<int32_t> ids(static_cast<size_t>(chosen), -1);
    layer.block.router = &router;
    layer.block.logits = logits.data();
    layer.block.routing_weights = weights.data();
    layer.block.expert_ids = ids.data();
    expect(fiddler_attend_block(pool, tier, &layer.block) == FIDDLER_OK, "fiddler_attend_block with a router", tier);
    std::vector<float> due_logits(logits.size()), due_weights(weights.size());
    std::vector<int32_t> due_ids(ids.size());
    expect(fiddler_route(pool, tier, &router, layer.s.rows, layer.normed.data(), due_logits.data(), due_weights.data(),
                         due_ids.data()) == FIDDLER_OK,
           "fiddler_route of the same rows", tier);
    expect(logits == due_logits && weights == due_weights && ids == due_ids, "the same choice", tier);
    layer.block.expert_ids = nullptr;
    expect(fiddler_attend_block(pool, tier, &layer.block) == FIDDLER_NULL_POINTER, "no room for a choice", tier);
    const Linear other(experts, layer.s.hidden - 2, layer.numbers);
    const fiddler_router misfit = {other.product, k, FIDDLER_SOFTMAX, 0, 1, 1, 0.0f, 1.0f, nullptr, 1, 1};
    layer.block.router = &misfit;
    expect(fiddler_attend_block(pool, tier, &layer.block) == FIDDLER_BAD_SIZE, "a router of other rows", tier);
  }
}

// A layer that posts its message, and the sums that are added to its rows.
void post_blocks(fiddler_pool* pool) {
  constexpr int64_t page = 4096;
  const unsigned char nonce[16] = {1};
  const int64_t bytes = fiddler_segment_size(1, page, page);
  void* memory = std::aligned_alloc(page, static_cast<size_t>(bytes));
  fiddler_segment* service = fiddler_segment_create(memory, 1, page, page, nonce, 1, 0);
  fiddler_segment* caller = fiddler_segment_create(memory, 1, page, page, nonce, 0, 0);
  Layer layer({2, 96, 6, 2, 32, 32, 70, true, false, false});
  const int64_t rows = layer.s.rows, k = 3, count = rows * layer.s.hidden;
  const Linear gate(9, layer.s.hidden, layer.numbers);
  const fiddler_router router = {gate.product, k, FIDDLER_SOFTMAX, 0, 1, 1, 0.0f, 1.0f, nullptr, 1, 1};
  std::vector<float> logits(static_cast<size_t>(rows * 9)), weights(static_cast<size_t>(rows * k));
  std::vector<int32_t> ids(static_cast<size_t>(rows * k), -1);
  layer.block.logits = logits.data();
  layer.block.routing_weights = weights.data();
  layer.block.expert_ids = ids.data();
  fiddler_segment_request request = {};
  request.sequence = 5;
  request.rows = static_cast<uint32_t>(rows);
  request.experts_per_row = k;
  int32_t slot = -7;
  const auto post = [&] { return fiddler_attend_and_post(pool, scalar_tier, &layer.block, caller, &request, &slot); };
  expect(post() == FIDDLER_NULL_POINTER && slot == -7, "nothing is posted without a router");
  layer.block.router = &router;
  request.rows = 1;
  expect(post() == FIDDLER_BAD_SIZE && slot == -7, "nothing is posted for other rows");
  request.rows = static_cast<uint32_t>(rows);
  expect(post() == FIDDLER_OK && slot == 0, "a message in the first slot", slot);
  const auto* sent = static_cast<const unsigned char*>(fiddler_segment_payload(service, 0));
  expect(std::memcmp(sent, layer.normed.data(), static_cast<size_t>(2 * count)) == 0, "the rows that were sent");
  expect(std::memcmp(sent + 2 * count, ids.data(), ids.size() * 4) == 0, "the experts that were sent");
  expect(post() == FIDDLER_OK && slot == -1, "no free slot", slot);

  for (const bool is_spoiled : {false, true}) {
    std::vector<Bf16> answer = layer.numbers.bf16(count), output(answer.size());
    if (is_spoiled) fiddler::from_float(INFINITY, &answer.back());
    fiddler_segment_response response = {};
    response.sequence = request.sequence;
    expect(fiddler_segment_answer(service, 0, &response, answer.data(), 2 * count) == FIDDLER_OK, "an answer");
    int32_t is_finite = -1;
    expect(fiddler_segment_join(caller, 0, request.sequence, 1.0, layer.residual.data(), output.data(), count, &response,
                                &is_finite) == FIDDLER_SEGMENT_ANSWERED,
           "an answer is joined");
    expect(is_finite == !is_spoiled, "whether it is finite", is_spoiled);
    const float sum = fiddler::to_float(&layer.residual[7]) + fiddler::to_float(&answer[7]);
    const float due = is_spoiled ? fiddler::to_float(&answer[7]) : sum;
    expect(std::abs(fiddler::to_float(&output[7]) - due) <= std::abs(due) / 128, "what is added", is_spoiled);
    expect(post() == FIDDLER_OK && slot == 0, "the slot is free again", slot);
  }
  fiddler_segment_destroy(caller);
  fiddler_segment_destroy(service);
  std::free(memory);
}

void refuse_blocks(fiddler_pool* pool) {
  Layer good({2, 64, 4, 2, 16, 16, 9, true, false, false});
  const auto status = [&](auto change) {
    fiddler_attention_block block = good.block;
    change(block);
    return fiddler_attend_block(pool, scalar_tier, &block);
  };
  expect(fiddler_attend_block(pool, scalar_tier, nullptr) == FIDDLER_NULL_POINTER, "no block");
  expect(status([](auto& block) { block.positions = nullptr; }) == FIDDLER_NULL_POINTER, "no positions");
  expect(status([](auto& block) { block.after.weight = nullptr; }) == FIDDLER_NULL_POINTER, "no norm");
  expect(status([](auto& block) { block.residual = nullptr; }) == FIDDLER_NULL_POINTER, "no room for sums");
  expect(status([](auto& block) { block.attention.length = 3; }) == FIDDLER_BAD_SIZE, "a position beyond the memory");
  expect(status([](auto& block) { block.attention.rows = 0; }) == FIDDLER_BAD_SIZE, "no rows");
  expect(status([](auto& block) { block.turned = 18; }) == FIDDLER_BAD_SIZE, "more turned than there are");
  expect(status([](auto& block) { block.angles = 4; }) == FIDDLER_BAD_SIZE, "too few angles");
  expect(status([](auto& block) { block.query_norm.size = 24; }) == FIDDLER_BAD_SIZE, "a norm of no equal parts");
  expect(status([](auto& block) { block.before.size = 63; }) == FIDDLER_BAD_SIZE, "a norm of other rows");
  expect(status([](auto& block) { block.out.inputs = 32; }) == FIDDLER_BAD_SIZE, "another output projection");
  expect(status([](auto& block) { block.attention.dtype = FIDDLER_FLOAT32; }) == FIDDLER_BAD_DTYPE, "float32");
}

void route(fiddler_pool* pool) {
  Numbers numbers;
  for (const int64_t rows : {1, 7}) {
    for (const int64_t experts : {1, 6, 128}) {
      for (int32_t scoring = 0; scoring < 3; ++scoring) {
        const Linear gate(experts, 70, numbers);
        const auto hidden = numbers.bf16(rows * 70);
        const std::vector<float> corrections(static_cast<size_t>(experts), 0.5f);
        const int64_t groups = experts == 128 ? 8 : 1, k = std::min<int64_t>(experts, 6);
        const int64_t kept = (groups + 1) / 2;
        fiddler_router router = {gate.product, k,    scoring,            1,      0, 1,
                                 0.0f,         1.0f, corrections.data(), groups, kept};
        for (int32_t tier = 0; fiddler_tier_name(tier); ++tier) {
          if (!fiddler_has_tier(tier)) continue;
          std::vector<float> logits(static_cast<size_t>(rows * experts)), weights(static_cast<size_t>(rows * k));
          std::vector<int32_t> ids(static_cast<size_t>(rows * k), -1);
          expect(fiddler_route(pool, tier, &router, rows, hidden.data(), logits.data(), weights.data(), ids.data()) ==
                     FIDDLER_OK,
                 "fiddler_route", tier);
          for (int64_t r = 0; r < rows; ++r) {
            float sum = 0.0f;
            for (int64_t i = 0; i < k; ++i) {
              const int32_t id = ids[static_cast<size_t>(r * k + i)];
              sum += weights[static_cast<size_t>(r * k + i)];
              expect(id >= 0 && id < experts, "an expert that there is", id);
              for (int64_t j = 0; j < i; ++j) expect(id != ids[static_cast<size_t>(r * k + j)], "an expert once", id);
            }
            expect(std::abs(sum - 1.0f) < 1e-5f, "weights of a row sum to 1", tier);
          }
        }
        router.k = experts + 1;
        float number = 0.0f;
        int32_t id = 0;
        expect(fiddler_route(pool, scalar_tier, &router, 1, hidden.data(), &number, &number, &id) == FIDDLER_BAD_SIZE,
               "more experts than there are");
      }
    }
  }
}

}  // namespace

int main() {
  for (int32_t threads : {1, 2, 5}) {
    const int32_t cpus[] = {0, 1, 2, 3, 4}, nodes[] = {0, 1, 0, 1, 0};
    fiddler_pool* pool = fiddler_pool_create(cpus, nodes, threads, 20);
    expect(pool != nullptr, "a pool", threads);
    compute_blocks(pool);
    route_blocks(pool);
    post_blocks(pool);
    refuse_blocks(pool);
    route(pool);
    fiddler_pool_destroy(pool);
  }
  std::printf("%s\n", failures ? "FAILED" : "decoding: all native tests passed");
  return failures != 0;
}
