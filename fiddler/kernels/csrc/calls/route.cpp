// fiddler_route: the router of a MoE layer, whose operations on a few values PyTorch takes longer to begin than to do.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "abi.h"
#include "calls/interface.h"
#include "formats.h"

namespace fiddler {
namespace {

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

// Memory that is kept from one call to the next. Each calling thread has its own.
struct Space {
  std::vector<float> scores, choice, group_scores;
  std::vector<int32_t> groups;
};

int32_t check(const fiddler_router* router, int64_t rows, const void* hidden, const float* logits,
              const float* weights, const int32_t* ids) {
  if (!router || !hidden || !logits || !weights || !ids) return FIDDLER_NULL_POINTER;
  const int64_t experts = router->gate.outputs;
  if (rows < 1 || experts < 1 || router->k < 1 || router->k > experts) return FIDDLER_BAD_SIZE;
  if (router->groups < 1 || experts % router->groups) return FIDDLER_BAD_SIZE;
  if (router->kept_groups < 1 || router->kept_groups > router->groups) return FIDDLER_BAD_SIZE;
  if (router->kept_groups * (experts / router->groups) < router->k) return FIDDLER_BAD_SIZE;
  if (router->scoring < FIDDLER_SOFTMAX || router->scoring > FIDDLER_SIGMOID) return FIDDLER_BAD_DTYPE;
  return FIDDLER_OK;
}

// Whether one score comes before another one. What is not a number comes first, as PyTorch has it.
bool is_better(float one, float other) { return one > other || (std::isnan(one) && !std::isnan(other)); }

// The numbers of the largest of `count` scores, the largest first; of equal ones the first.
void choose(const float* scores, int64_t count, int64_t k, int32_t* chosen) {
  for (int64_t n = 0; n < k; ++n) {
    int64_t best = -1;
    for (int64_t i = 0; i < count; ++i) {
      const bool is_taken = std::find(chosen, chosen + n, static_cast<int32_t>(i)) != chosen + n;
      if (!is_taken && (best < 0 || is_better(scores[i], scores[best]))) best = i;
    }
    chosen[n] = static_cast<int32_t>(best);
  }
}

void softmax(float* values, int64_t count) {
  float largest = minus_infinity, sum = 0.0f;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, values[i]);
  for (int64_t i = 0; i < count; ++i) sum += values[i] = std::exp(values[i] - largest);
  for (int64_t i = 0; i < count; ++i) values[i] /= sum;
}

// Leaves the experts of the best groups to be chosen.
void keep_groups(const fiddler_router& router, Space& space) {
  const int64_t size = router.gate.outputs / router.groups;
  space.group_scores.resize(static_cast<size_t>(router.groups));
  for (int64_t g = 0; g < router.groups; ++g) {
    int32_t best[2];
    const int64_t count = std::min<int64_t>(size, 2);
    choose(space.choice.data() + g * size, size, count, best);
    float sum = 0.0f;
    for (int64_t i = 0; i < count; ++i) sum += space.choice[static_cast<size_t>(g * size + best[i])];
    space.group_scores[static_cast<size_t>(g)] = sum;
  }
  space.groups.resize(static_cast<size_t>(router.kept_groups));
  choose(space.group_scores.data(), router.groups, router.kept_groups, space.groups.data());
  for (int64_t g = 0; g < router.groups; ++g) {
    if (std::find(space.groups.begin(), space.groups.end(), static_cast<int32_t>(g)) == space.groups.end()) {
      std::fill_n(space.choice.begin() + g * size, size, minus_infinity);
    }
  }
}

void route_row(const fiddler_router& router, const float* logits, Space& space, float* weights, int32_t* ids) {
  const int64_t experts = router.gate.outputs, k = router.k;
  space.scores.assign(logits, logits + experts);
  float* scores = space.scores.data();
  if (router.scoring == FIDDLER_SOFTMAX) softmax(scores, experts);
  if (router.scoring == FIDDLER_SIGMOID) {
    for (int64_t i = 0; i < experts; ++i) scores[i] = 1.0f / (1.0f + std::exp(-scores[i]));
  }
  space.choice = space.scores;
  if (router.corrections) {
    for (int64_t i = 0; i < experts; ++i) space.choice[static_cast<size_t>(i)] += router.corrections[i];
  }
  if (router.kept_groups < router.groups) keep_groups(router, space);
  choose(space.choice.data(), experts, k, ids);
  for (int64_t n = 0; n < k; ++n) weights[n] = scores[ids[n]];
  if (router.scoring == FIDDLER_SOFTMAX_OF_CHOSEN) softmax(weights, k);
  if (router.normalizes) {
    float sum = 0.0f;
    for (int64_t n = 0; n < k; ++n) sum += weights[n];
    sum += router.added;
    for (int64_t n = 0; n < k; ++n) weights[n] /= sum;
  }
  for (int64_t n = 0; n < k; ++n) {
    weights[n] *= router.factor;
    if (router.rounds_weights) weights[n] = std::bit_cast<float>(bf16_bits(weights[n]) << 16);
  }
}

int32_t compute(fiddler_pool* pool, int32_t tier, const fiddler_router& router, int64_t rows, const void* hidden,
                float* logits, float* weights, int32_t* ids) {
  thread_local Space space;
  const int64_t experts = router.gate.outputs, count = rows * experts;
  fiddler_product gate = router.gate;
  gate.rows = rows;
  gate.input = hidden;
  gate.output = logits;
  gate.input_dtype = FIDDLER_BFLOAT16;
  gate.output_dtype = FIDDLER_FLOAT32;
  const fiddler_product* const products[] = {&gate};
  if (const int32_t status = fiddler_multiply(pool, tier, products, 1)) return status;
  if (!router.keeps_logits) {
    for (int64_t i = 0; i < count; ++i) logits[i] = std::bit_cast<float>(bf16_bits(logits[i]) << 16);
  }
  for (int64_t r = 0; r < rows; ++r) {
    route_row(router, logits + r * experts, space, weights + r * router.k, ids + r * router.k);
  }
  return FIDDLER_OK;
}

}  // namespace
}  // namespace fiddler

extern "C" int32_t fiddler_route(fiddler_pool* pool, int32_t tier, const fiddler_router* router, int64_t rows,
                                 const void* hidden, float* logits, float* weights, int32_t* ids) {
  using namespace fiddler;
  if (!pool) return FIDDLER_NULL_POINTER;
  if (const int32_t status = check(router, rows, hidden, logits, weights, ids)) return status;
  try {
    return compute(pool, tier, *router, rows, hidden, logits, weights, ids);
  } catch (const std::bad_alloc&) {
    return FIDDLER_NO_MEMORY;
  }
}
