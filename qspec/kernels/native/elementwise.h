// Norms, activation functions, rotary positions, quantisation of activations, argmax.
//
// Sums have one order; everything else is element by element in operations that IEEE 754 rounds exactly (this file is
// compiled without contraction), so an element's bits depend neither on its place nor on the instruction set.
#pragma once
#include "matrix.h"

namespace {

using qspec::Matrix;

inline Lanes load_part(const float* p, int64_t count) {  // lanes from count on are 0
  if (count >= 16) return load(p);
  alignas(64) float part[16] = {};
  std::memcpy(part, p, static_cast<size_t>(count) * sizeof(float));
  return load(part);
}
inline void store_part(float* p, Lanes a, int64_t count) {
  if (count >= 16) return store(p, a);
  alignas(64) float part[16];
  store(part, a);
  std::memcpy(p, part, static_cast<size_t>(count) * sizeof(float));
}

// e^x: x = n ln 2 + r, the polynomial of Cephes' expf in r (relative error below 2e-7). Below -87 it is 0, above 88
// infinite; NaN stays.
inline Lanes exponential(Lanes x) {
  const Lanes n = round_even(mul(x, broadcast(1.44269504088896341f)));
  Lanes r = fnma(n, broadcast(0.693359375f), x);
  r = fnma(n, broadcast(-2.12194440e-4f), r);
  Lanes p = fma(broadcast(1.9875691500e-4f), r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  p = add(fma(p, mul(r, r), r), broadcast(1.0f));
  p = times_power_of_two(p, n);
  p = where_less(x, broadcast(-87.0f), zero(), p);
  return where_less(broadcast(88.0f), x, broadcast(__builtin_inff()), p);
}

// Sums of squares and of values: vectors 0, 2, 4… and 1, 3, 5… in a chain each.
template <class Term>
inline float sum_of(int32_t size, Term term) {
  Lanes even = zero(), odd = zero();
  int32_t i = 0;
  for (; i + 32 <= size; i += 32) even = term(even, i, 16), odd = term(odd, i + 16, 16);
  if (i < size) even = term(even, i, size - i < 16 ? size - i : 16);
  if (i + 16 < size) odd = term(odd, i + 16, size - i - 16);
  return sum(add(even, odd));
}

void rms_norm(const float* x, const float* weight, float eps, int32_t size, float* out) {
  const float squares = sum_of(size, [&](Lanes s, int32_t i, int32_t n) {
    const Lanes v = load_part(x + i, n);
    return fma(v, v, s);
  });
  const float scale = 1.0f / __builtin_sqrtf(squares / static_cast<float>(size) + eps);
  for (int32_t i = 0; i < size; i++) out[i] = x[i] * scale * weight[i];
}

void layer_norm(const float* x, const float* weight, const float* bias, float eps, int32_t size, float* out) {
  const float count = static_cast<float>(size);
  const float mean = sum_of(size, [&](Lanes s, int32_t i, int32_t n) { return add(s, load_part(x + i, n)); }) / count;
  const float squares = sum_of(size, [&](Lanes s, int32_t i, int32_t n) {
    alignas(64) float centred[16] = {};
    for (int32_t j = 0; j < n; j++) centred[j] = x[i + j] - mean;
    const Lanes v = load(centred);
    return fma(v, v, s);
  });
  const float scale = 1.0f / __builtin_sqrtf(squares / count + eps);
  for (int32_t i = 0; i < size; i++) out[i] = (x[i] - mean) * scale * weight[i] + bias[i];
}

// x / (1 + e^-t) times up; t is x for SiLU, and the tanh form of GELU is the same with t = 2 sqrt(2/pi) (x + 0.044715 x^3).
template <class Argument>
inline void gate(float* x, const float* up, int32_t size, Argument argument) {
  for (int32_t i = 0; i < size; i += 16) {
    const int32_t n = size - i < 16 ? size - i : 16;
    const Lanes v = load_part(x + i, n);
    Lanes y = div(v, add(broadcast(1.0f), exponential(sub(zero(), argument(v)))));
    if (up) y = mul(y, load_part(up + i, n));
    store_part(x + i, y, n);
  }
}
void silu_mul(float* x, const float* up, int32_t size) {
  gate(x, up, size, [](Lanes v) { return v; });
}
void gelu_mul(float* x, const float* up, int32_t size) {
  gate(x, up, size, [](Lanes v) {
    const Lanes cube = mul(mul(v, v), v);
    return mul(add(mul(cube, broadcast(0.044715f)), v), broadcast(1.5957691216057308f));
  });
}

// x cos + (x with its halves exchanged) sin; sin has the sign of the first half in it.
void rotate(float* x, const float* cos, const float* sin, int32_t head_dim) {
  const int32_t half = head_dim / 2;
  for (int32_t i = 0; i < half; i++) {
    const float a = x[i], b = x[i + half];
    x[i] = a * cos[i] + b * sin[i];
    x[i + half] = b * cos[i + half] + a * sin[i + half];
  }
}

// The largest magnitude; NaN when there is one.
inline float largest_magnitude(const float* x, int64_t size) {
  Lanes top = zero();
  bool nan = false;
  for (int64_t i = 0; i < size; i += 16) {
    const Lanes v = load_part(x + i, size - i);
    nan |= any_nan(v);
    top = max(top, absolute(v));
  }
  return nan ? __builtin_nanf("") : largest(top);
}

inline float nearest_e4m3(float v) {
  const float a = __builtin_fabsf(v);
  uint32_t bits;
  std::memcpy(&bits, &a, 4);
  bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & ~uint32_t{0xFFFFF};
  float normal;
  std::memcpy(&normal, &bits, 4);
  const float subnormal = (a + 24576.0f) - 24576.0f;  // multiples of 2^-9
  return __builtin_copysignf(a >= 0.015625f ? normal : subnormal, v);
}

void prepare_row(const Matrix& m, float* values, float* out_values, uint8_t* out_codes, float* out_scale) {
  const int64_t inputs = m.inputs, padded = qspec::padded_inputs(inputs);
  for (int64_t i = inputs; i < padded; i++) values[i] = 0.0f;
  if (m.activations == qspec::Activations::kInt8) {
    const float top = largest_magnitude(values, inputs);
    const float factor = 127.0f / (top > 0 ? top : 1.0f);
    *out_scale = top > 0 || top != top ? top / 127.0f : 1.0f;
    for (int64_t i = 0; i < padded; i++) {
      float v = values[i] * factor;
      v = v > 127.0f ? 127.0f : v;
      v = v > -127.0f ? v : -127.0f;  // NaN too: the row's scale is NaN or infinite then
      values[i] = __builtin_rintf(v);
    }
    if (m.nibbles()) {
      for (int64_t i = 0; i < padded; i += 64)
        for (int64_t j = 0; j < 32; j++) {
          out_codes[i + j] = static_cast<uint8_t>(static_cast<int32_t>(values[i + 2 * j])) ^ kFlip;
          out_codes[i + j + 32] = static_cast<uint8_t>(static_cast<int32_t>(values[i + 2 * j + 1])) ^ kFlip;
        }
    } else {
      for (int64_t i = 0; i < padded; i++) out_codes[i] = static_cast<uint8_t>(static_cast<int32_t>(values[i])) ^ kFlip;
    }
    return;
  }
  if (m.activations == qspec::Activations::kE4m3) {
    const float scale = largest_magnitude(values, inputs) / 448.0f;
    const float divisor = scale > 0 || scale != scale ? scale : 1.0f;
    for (int64_t i = 0; i < inputs; i++) {
      float v = values[i] / divisor;
      v = v > 448.0f ? 448.0f : v;
      v = v < -448.0f ? -448.0f : v;
      values[i] = nearest_e4m3(v) * scale;
    }
  }
  if (m.nibbles()) {
    for (int64_t i = 0; i < padded; i += 32)
      for (int64_t j = 0; j < 16; j++) {
        out_values[i + j] = values[i + 2 * j];
        out_values[i + j + 16] = values[i + 2 * j + 1];
      }
  } else if (out_values != values) {
    std::memcpy(out_values, values, static_cast<size_t>(padded) * sizeof(float));
  }
}

void argmax(const float* values, int32_t size, float* best, int32_t* index) {
  constexpr int32_t kBlock = 256;
  *best = values[0], *index = 0;
  for (int32_t start = 0; start < size; start += kBlock) {
    const int32_t stop = size - start < kBlock ? size : start + kBlock;
    Lanes top = broadcast(values[start]);
    bool nan = false;
    int32_t i = start;
    for (; i + 16 <= stop; i += 16) {
      const Lanes v = load(values + i);
      nan |= any_nan(v);
      top = max(top, v);
    }
    float block_top = largest(top);
    for (; i < stop; i++) {
      nan |= values[i] != values[i];
      block_top = values[i] > block_top ? values[i] : block_top;
    }
    if (!nan && !(block_top > *best)) continue;
    for (i = start; i < stop; i++) {
      if (values[i] != values[i]) {
        *best = values[i], *index = i;
        return;
      }
      if (values[i] > *best) *best = values[i], *index = i;
    }
  }
}

}  // namespace
