// The reference that all other tiers are compared with: plain loops, any strides, sums in double.
#pragma once

#include "activation.h"
#include "projections/codes.h"
#include "job.h"

namespace fiddler {
namespace {

constexpr int64_t no_panels = INT64_MAX;
constexpr double scalar_rows_per_read = 1;

// One weight, whatever it is stored as.
template <class Stored>
double weight_at(const Matrix& matrix, int64_t output, int64_t input) {
  if constexpr (is_coded<Stored>) {
    const int64_t group = input / matrix.coding.group_inputs;
    float scale;
    load_scales(matrix.coding, output, group, 1, 1.0f, &scale);
    const unsigned char* row = matrix.weights + output * matrix.out_stride;
    const float value = decode<Stored>(row, input, zero_of<Stored>(matrix.coding, output, group));
    return static_cast<double>(value) * static_cast<double>(scale);
  } else {
    const int64_t element = output * matrix.out_stride + input * matrix.in_stride;
    return static_cast<double>(
        to_float(reinterpret_cast<const Stored*>(matrix.weights + element * int64_t{sizeof(Stored)})));
  }
}

template <class Stored>
float dot(const Matrix& matrix, int64_t output, const float* x, int64_t length) {
  double sum = matrix.bias ? static_cast<double>(matrix.bias[output]) : 0.0;
  for (int64_t i = 0; i < length; ++i) {
    sum += weight_at<Stored>(matrix, output, i) * static_cast<double>(x[i]);
  }
  return static_cast<float>(sum);
}

template <class Stored>
void scalar_inner(const Job& job, const ExpertRows& expert, int64_t begin, int64_t end, Scratch&) {
  for (int64_t a = expert.first; a < expert.first + expert.count; ++a) {
    const auto* x = static_cast<const float*>(job.hidden_rows[a]);
    auto* inner = static_cast<float*>(job.inner_rows[a]);
    for (int64_t n = begin; n < end; ++n) {
      const float gate = job.gated ? dot<Stored>(expert.gate, n, x, job.hidden_size) : 0.0f;
      float up = dot<Stored>(expert.up, n, x, job.hidden_size);
      if (job.has_factor) up *= dot<Stored>(expert.factor, n, x, job.hidden_size);
      activate<ExactMath>(job, job.gated ? &gate : nullptr, &up, 1, inner + n);
    }
  }
}

template <class Stored>
void scalar_outer(const Job& job, int64_t begin, int64_t end, Scratch&) {
  for (int64_t r = 0; r < job.rows; ++r) {
    for (int64_t n = begin; n < end; ++n) job.sums[r * job.hidden_size + n] = 0.0f;
  }
  for (int64_t e = 0; e < job.num_experts; ++e) {
    const ExpertRows& expert = job.experts[e];
    for (int64_t a = expert.first; a < expert.first + expert.count; ++a) {
      const auto* inner = static_cast<const float*>(job.inner_rows[a]);
      float* sums = job.sums + job.row[a] * job.hidden_size;
      for (int64_t n = begin; n < end; ++n) {
        sums[n] += job.weight[a] * dot<Stored>(expert.down, n, inner, job.intermediate_size);
      }
    }
  }
  if (!job.output) return;
  for (int64_t r = 0; r < job.rows; ++r) {
    for (int64_t n = begin; n < end; ++n) {
      from_float(job.sums[r * job.hidden_size + n], static_cast<Bf16*>(job.output) + r * job.hidden_size + n);
    }
  }
}

template <class Stored>
constexpr Ops scalar_ops = {FIDDLER_FLOAT32,      false, no_panels, scalar_rows_per_read, scalar_inner<Stored>,
                            scalar_outer<Stored>, nullptr};

}  // namespace
}  // namespace fiddler
