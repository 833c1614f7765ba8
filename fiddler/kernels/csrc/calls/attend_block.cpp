// fiddler_attend_block: what a decoder layer does before its experts, in the order of transformers' code, and the choice
// of its experts. fiddler_attend_and_post also posts the message to them.

#include <cstring>
#include <initializer_list>

#include "abi.h"
#include "calls/interface.h"
#include "formats.h"
#include "segment/abi.h"

namespace fiddler {
namespace {

// Memory that is kept from one layer to the next. Each calling thread has its own.
struct Space {
  Buffer normed, queries, keys, values, attended, projected;
};

// Whether a norm, if there is one, is of equal parts of so many values.
bool divides(const fiddler_norm& norm, int64_t values) {
  return !norm.weight || (norm.size > 0 && values % norm.size == 0);
}

int32_t check(const fiddler_attention_block& block) {
  const fiddler_attention& attention = block.attention;
  if (attention.rows < 1 || attention.heads < 1 || attention.kv_heads < 1 || attention.length < 1) {
    return FIDDLER_BAD_SIZE;
  }
  if (attention.key_size < 1 || attention.value_size < 1) return FIDDLER_BAD_SIZE;
  if (block.turned < 0 || block.turned > attention.key_size || block.turned % 2) return FIDDLER_BAD_SIZE;
  if (block.angles != block.turned && block.angles * 2 != block.turned) return FIDDLER_BAD_SIZE;
  const int64_t hidden = block.query.inputs;
  if (block.key.inputs != hidden || block.value.inputs != hidden || block.out.outputs != hidden) {
    return FIDDLER_BAD_SIZE;
  }
  if (block.query.outputs != attention.heads * attention.key_size ||
      block.key.outputs != attention.kv_heads * attention.key_size ||
      block.value.outputs != attention.kv_heads * attention.value_size ||
      block.out.inputs != attention.heads * attention.value_size) {
    return FIDDLER_BAD_SIZE;
  }
  if (block.before.size != hidden || block.after.size != hidden) return FIDDLER_BAD_SIZE;
  if (!divides(block.query_norm, block.query.outputs) || !divides(block.key_norm, block.key.outputs)) {
    return FIDDLER_BAD_SIZE;
  }
  if (block.router && block.router->gate.inputs != hidden) return FIDDLER_BAD_SIZE;
  if (attention.dtype != FIDDLER_BFLOAT16) return FIDDLER_BAD_DTYPE;
  for (const void* pointer : {block.cosines, block.sines, block.hidden, static_cast<const void*>(block.residual),
                              static_cast<const void*>(block.normed), attention.keys, attention.values,
                              block.before.weight, block.after.weight}) {
    if (!pointer) return FIDDLER_NULL_POINTER;
    if (!is_aligned(pointer, 2)) return FIDDLER_MISALIGNED;
  }
  if (!block.positions) return FIDDLER_NULL_POINTER;
  for (int64_t r = 0; r < attention.rows; ++r) {
    if (block.positions[r] < 0 || block.positions[r] >= attention.length) return FIDDLER_BAD_SIZE;
  }
  return FIDDLER_OK;
}

int32_t normalize(const fiddler_norm& norm, int64_t values, const void* input, void* output) {
  const int64_t rows = values / norm.size;
  return fiddler_normalize(rows, norm.size, input, norm.weight, output, norm.epsilon, norm.rounds_first);
}

fiddler_product with_rows(const fiddler_product& product, int64_t rows, const void* input, void* output) {
  fiddler_product complete = product;
  complete.rows = rows;
  complete.input = input;
  complete.output = output;
  complete.input_dtype = complete.output_dtype = FIDDLER_BFLOAT16;
  return complete;
}

Bf16 product_of(const Bf16* one, const Bf16* other) {
  Bf16 product;
  from_float(to_float(one) * to_float(other), &product);
  return product;
}

// Turns each pair (i, i + half) of the first values of a head. The products are rounded, as they are where each is a
// tensor of its own.
void turn(Bf16* head, int64_t turned, const Bf16* cosines, const Bf16* sines, int64_t angles) {
  const int64_t half = turned / 2, second = angles == turned ? half : 0;
  for (int64_t i = 0; i < half; ++i) {
    const Bf16 left = head[i], right = head[i + half];
    const Bf16 a = product_of(&left, cosines + i), b = product_of(&right, sines + i);
    const Bf16 c = product_of(&right, cosines + second + i), d = product_of(&left, sines + second + i);
    from_float(to_float(&a) - to_float(&b), head + i);
    from_float(to_float(&c) + to_float(&d), head + i + half);
  }
}

int32_t turn_heads(const fiddler_attention_block& block, const fiddler_norm& norm, int64_t heads, Bf16* values) {
  const int64_t size = block.attention.key_size, rows = block.attention.rows;
  if (norm.weight) {
    if (const int32_t status = normalize(norm, rows * heads * size, values, values)) return status;
  }
  for (int64_t r = 0; r < rows; ++r) {
    const auto* cosines = static_cast<const Bf16*>(block.cosines) + r * block.angles;
    const auto* sines = static_cast<const Bf16*>(block.sines) + r * block.angles;
    for (int64_t h = 0; h < heads; ++h) {
      turn(values + (r * heads + h) * size, block.turned, cosines, sines, block.angles);
    }
  }
  return FIDDLER_OK;
}

// Puts [rows, heads, size] at the positions of their sequences.
void keep(const Bf16* from, const void* to, const fiddler_attention_block& block, int64_t size, int64_t row_stride,
          int64_t head_stride, int64_t stride) {
  // what attention reads is written here alone
  auto* memory = static_cast<Bf16*>(const_cast<void*>(to));
  for (int64_t r = 0; r < block.attention.rows; ++r) {
    for (int64_t h = 0; h < block.attention.kv_heads; ++h, from += size) {
      Bf16* place = memory + r * row_stride + h * head_stride + block.positions[r] * stride;
      std::memcpy(place, from, static_cast<size_t>(size) * sizeof(Bf16));
    }
  }
}

int32_t compute(fiddler_pool* pool, int32_t tier, const fiddler_attention_block& block) {
  thread_local Space space;
  const fiddler_attention& given = block.attention;
  const int64_t rows = given.rows, hidden = block.query.inputs;
  const auto reserve = [rows](Buffer& buffer, int64_t size) {
    return reinterpret_cast<Bf16*>(buffer.reserve(rows * size * static_cast<int64_t>(sizeof(Bf16))));
  };
  Bf16* normed = reserve(space.normed, hidden);
  Bf16* queries = reserve(space.queries, block.query.outputs);
  Bf16* keys = reserve(space.keys, block.key.outputs);
  Bf16* values = reserve(space.values, block.value.outputs);
  Bf16* attended = reserve(space.attended, block.out.inputs);
  Bf16* projected = reserve(space.projected, hidden);

  if (const int32_t status = normalize(block.before, rows * hidden, block.hidden, normed)) return status;
  const fiddler_product query = with_rows(block.query, rows, normed, queries);
  const fiddler_product key = with_rows(block.key, rows, normed, keys);
  const fiddler_product value = with_rows(block.value, rows, normed, values);
  const fiddler_product* const products[] = {&query, &key, &value};
  if (const int32_t status = fiddler_multiply(pool, tier, products, 3)) return status;
  if (const int32_t status = turn_heads(block, block.query_norm, given.heads, queries)) return status;
  if (const int32_t status = turn_heads(block, block.key_norm, given.kv_heads, keys)) return status;
  keep(keys, given.keys, block, given.key_size, given.key_row_stride, given.key_head_stride, given.key_stride);
  keep(values, given.values, block, given.value_size, given.value_row_stride, given.value_head_stride,
       given.value_stride);

  fiddler_attention attention = given;
  attention.queries = queries;
  attention.query_row_stride = given.heads * given.key_size;
  attention.query_head_stride = given.key_size;
  attention.output = attended;
  if (const int32_t status = fiddler_attend(pool, tier, &attention)) return status;
  const fiddler_product out = with_rows(block.out, rows, attended, projected);
  const fiddler_product* const last[] = {&out};
  if (const int32_t status = fiddler_multiply(pool, tier, last, 1)) return status;
  add(block.hidden, projected, block.residual, rows * hidden);
  if (const int32_t status = normalize(block.after, rows * hidden, block.residual, block.normed)) return status;
  if (!block.router) return FIDDLER_OK;
  return fiddler_route(pool, tier, block.router, rows, block.normed, block.logits, block.routing_weights,
                       block.expert_ids);
}

}  // namespace
}  // namespace fiddler

extern "C" int32_t fiddler_attend_block(fiddler_pool* pool, int32_t tier, const fiddler_attention_block* block) {
  using namespace fiddler;
  if (!pool || !block) return FIDDLER_NULL_POINTER;
  if (const int32_t status = check(*block)) return status;
  try {
    return compute(pool, tier, *block);
  } catch (const std::bad_alloc&) {
    return FIDDLER_NO_MEMORY;
  }
}

extern "C" int32_t fiddler_attend_and_post(fiddler_pool* pool, int32_t tier, const fiddler_attention_block* block,
                                           fiddler_segment* segment, const fiddler_segment_request* request,
                                           int32_t* slot) {
  if (!block || !block->router || !segment || !request || !slot) return FIDDLER_NULL_POINTER;
  if (request->rows != block->attention.rows || request->experts_per_row != block->router->k) return FIDDLER_BAD_SIZE;
  if (const int32_t status = fiddler_attend_block(pool, tier, block)) return status;
  const int64_t bytes = block->attention.rows * block->query.inputs * static_cast<int64_t>(sizeof(fiddler::Bf16));
  *slot = fiddler_segment_post(segment, request, block->normed, bytes, block->expert_ids, block->routing_weights);
  return FIDDLER_OK;
}
