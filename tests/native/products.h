// Linear layers: every tier against loops in double, with memory that ends with the data.
#pragma once

#include "layers.h"

namespace {

struct ProductCase {
  int64_t rows, inputs, outputs;
};

// The largest error of a product by a tier over the sum of the absolute values of its terms; infinite if it is refused.
double product_error(fiddler_pool* pool, int32_t tier, const ProductCase& c, int32_t weight_dtype, int32_t input_dtype,
                     bool biased) {
  Random random;
  const bool coded = weight_dtype == FIDDLER_INT8;
  const auto weights = stored(coded ? FIDDLER_FLOAT32 : weight_dtype, c.outputs * c.inputs, 0, 1.0f, random);
  const auto input = stored(input_dtype, c.rows * c.inputs, 0, 1.0f, random);
  std::vector<signed char> codes(static_cast<size_t>(c.outputs * c.inputs));
  for (signed char& code : codes) code = static_cast<signed char>(random.next() * 127.0f);
  const std::vector<float> scales(static_cast<size_t>(c.outputs), 0.0078125f), bias(scales.size(), 0.25f);
  const void* matrix = coded ? static_cast<const void*>(codes.data()) : weights.get();
  const void* scale = scales.data();
  const float* added = bias.data();
  const float multiplier = 1.0f;
  std::vector<float> output(static_cast<size_t>(c.rows * c.outputs), NAN);
  fiddler_product product = {};
  product.weights = {&matrix, biased ? &added : nullptr, c.inputs, 1};
  if (coded) {
    product.weights.scales = &scale;
    product.weights.multipliers = &multiplier;
    product.weights.scales_stride = 1;
    product.weights.group_inputs = c.inputs;
    product.weights.group_outputs = 1;
    product.weights.scale_kind = FIDDLER_SCALE_FLOAT32;
  }
  product.outputs = c.outputs;
  product.inputs = c.inputs;
  product.rows = c.rows;
  product.input = input.get();
  product.output = output.data();
  product.weight_dtype = weight_dtype;
  product.input_dtype = input_dtype;
  product.output_dtype = FIDDLER_FLOAT32;
  const fiddler_product* products[] = {&product};
  if (fiddler_multiply(pool, tier, products, 1) != FIDDLER_OK) return INFINITY;
  const auto value = [](const unsigned char* from, int32_t dtype, int64_t i) -> double {
    if (dtype == FIDDLER_FLOAT32) return fiddler::to_float(reinterpret_cast<const fiddler::Fp32*>(from) + i);
    if (dtype == FIDDLER_BFLOAT16) return fiddler::to_float(reinterpret_cast<const fiddler::Bf16*>(from) + i);
    return fiddler::to_float(reinterpret_cast<const fiddler::Fp16*>(from) + i);
  };
  double worst = 0;
  for (int64_t r = 0; r < c.rows; ++r) {
    for (int64_t n = 0; n < c.outputs; ++n) {
      double due = biased ? 0.25 : 0.0, size = 0.25;
      for (int64_t i = 0; i < c.inputs; ++i) {
        const double weight = coded ? codes[static_cast<size_t>(n * c.inputs + i)] * 0.0078125
                                    : value(weights.get(), weight_dtype, n * c.inputs + i);
        const double term = weight * value(input.get(), input_dtype, r * c.inputs + i);
        due += term;
        size += std::abs(term);
      }
      worst = std::max(worst, std::abs(output[static_cast<size_t>(r * c.outputs + n)] - due) / size);
    }
  }
  return worst;
}

}  // namespace
