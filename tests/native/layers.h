// Layers and rows of random numbers, in memory that ends with the data.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "abi.h"
#include "job.h"

namespace {

struct Random {
  uint32_t state = 1;
  float next() {
    state = state * 1664525u + 1013904223u;
    return static_cast<float>(state >> 8) / 8388608.0f - 1.0f;
  }
};

// Random values in one format, starting `shift` bytes into memory that ends with them.
std::unique_ptr<unsigned char[]> stored(int32_t dtype, int64_t count, int64_t shift, float scale, Random& random) {
  const int64_t bytes = dtype == FIDDLER_FLOAT32 ? 4 : 2;
  auto memory = std::make_unique<unsigned char[]>(static_cast<size_t>(count * bytes + shift));
  for (int64_t i = 0; i < count; ++i) {
    const float value = random.next() * scale;
    unsigned char* to = memory.get() + shift + i * bytes;
    if (dtype == FIDDLER_FLOAT32) {
      std::memcpy(to, &value, 4);
    } else if (dtype == FIDDLER_BFLOAT16) {
      fiddler::from_float(value, reinterpret_cast<fiddler::Bf16*>(to));
    } else {
      // float16 between 2^-8 and 1: sign, exponent and leading bits by hand
      const uint32_t bits = std::bit_cast<uint32_t>(value + (value < 0 ? -0.01f : 0.01f));
      const auto half = static_cast<uint16_t>((bits >> 16 & 0x8000u) | ((bits >> 13 & 0x3ffffu) - (112u << 10)));
      std::memcpy(to, &half, 2);
    }
  }
  return memory;
}

struct Shape {
  int64_t rows, k, num_experts, hidden, intermediate;
};

struct Layer {
  fiddler_layer layer{};
  std::vector<std::unique_ptr<unsigned char[]>> memory;
  std::vector<const void*> pointers[4];
  std::vector<float> bias;
  std::vector<const float*> biases;

  Layer(const Shape& shape, int32_t dtype, bool transposed, bool gated, bool biased, bool has_factor,
        int64_t shift) {
    Random random;
    const float scale = 1.0f / std::sqrt(static_cast<float>(shape.hidden));
    layer = {shape.num_experts, shape.hidden, shape.intermediate, dtype, FIDDLER_SILU, 1.702f, 7.0f, {}, {}, {}, {}};
    bias.assign(static_cast<size_t>(std::max(shape.hidden, shape.intermediate)), 0.25f);
    biases.assign(static_cast<size_t>(shape.num_experts), bias.data());
    fiddler_projection* projections[4] = {&layer.gate, &layer.up, &layer.down, &layer.factor};
    for (int p = gated ? 0 : 1; p < (has_factor ? 4 : 3); ++p) {
      const int64_t out = p == 2 ? shape.hidden : shape.intermediate, in = p == 2 ? shape.intermediate : shape.hidden;
      for (int64_t e = 0; e < shape.num_experts; ++e) {
        memory.push_back(stored(dtype, out * in, shift, scale, random));
        pointers[p].push_back(memory.back().get() + shift);
      }
      *projections[p] = {pointers[p].data(), biased && p < 3 ? biases.data() : nullptr, transposed ? 1 : in,
                         transposed ? out : 1};
    }
  }
};

}  // namespace
