// Linear layers whose activations are int8 with a scale per row: integer sums are exact in any order.
//
// One scale per weight row: value = float(sum) * x_scale * w_scale. Groups: sixteen lanes; in every 64 inputs lane j
// adds four products exactly and takes them, times its group's scale, by fused multiply-add in ascending order; then, where
// groups have a minimum, the four activations times that.
#pragma once
#include "linear.h"

namespace {

// 64 weights of one row as signed bytes, and the scales of the lanes that they are summed in.
struct IntegerRow {
  const uint8_t *codes, *zeros;
  const float *scales, *minima;

  IntegerRow() = default;
  IntegerRow(const Matrix& m, int64_t row) {
    const int64_t groups = m.inputs / m.group;
    codes = m.codes + row * (m.nibbles() ? m.inputs / 2 : m.inputs);
    scales = m.scales + row * groups;
    zeros = m.zeros ? m.zeros + row * groups : nullptr;
    minima = m.minima ? m.minima + row * groups : nullptr;
  }
};

template <bool kNibbles>
inline Bytes integer_weights(const Matrix& m, const IntegerRow& row, int64_t k, ByteTable table) {
  const int64_t left = m.inputs - k;
  const uint8_t* p = row.codes + (kNibbles ? k / 2 : k);
  alignas(64) uint8_t tail[64] = {};
  if (left < 64) {
    std::memcpy(tail, p, static_cast<size_t>(kNibbles ? left / 2 : left));
    p = tail;
  }
  if constexpr (!kNibbles) return load_bytes(p);
  Bytes w = load_nibbles(p, table);
  if (!row.zeros) return w;
  alignas(64) int8_t zeros[64];
  for (int i = 0; i < 64; i += 16) {
    const int64_t g = (k + (i % 32) * 2) >> m.group_shift;  // sixteen bytes are every second of 32 inputs
    std::memset(zeros + i, g < (m.inputs >> m.group_shift) ? row.zeros[g] : 0, 16);
  }
  return subtract(w, zeros);
}

// For each lane, its group's number.
template <bool kNibbles>
inline Lanes of_groups(const Matrix& m, const float* numbers, int64_t k) {
  if (m.group >= 64) return broadcast(numbers[k >> m.group_shift]);
  const int64_t g = k >> m.group_shift, last = (m.inputs >> m.group_shift) - 1;  // groups of 32
  const float first = numbers[g], second = numbers[g < last ? g + 1 : g];
  alignas(64) float lanes[16];
  for (int j = 0; j < 16; j++) lanes[j] = (kNibbles ? j / 4 % 2 : j / 8) ? second : first;
  return load(lanes);
}

template <bool kNibbles, int kOutputs, int kRows>
inline void add_minima(const Matrix& m, const IntegerRow* w, const uint8_t* x, int64_t stride, int64_t k,
                       Lanes (&acc)[kOutputs][kRows]) {
  alignas(64) uint8_t ones[64];
  std::memset(ones, 1, sizeof ones);
  const Bytes weights = load_bytes(ones);
  const Ints correction = subtract(zero_ints(), correct(zero_ints(), weights));
#pragma GCC unroll 8
  for (int r = 0; r < kRows; r++) {
    const Lanes sums = to_float(dot(correction, load_bytes(x + r * stride + k), weights));
#pragma GCC unroll 8
    for (int i = 0; i < kOutputs; i++) acc[i][r] = fma(sums, of_groups<kNibbles>(m, w[i].minima, k), acc[i][r]);
  }
}

template <bool kNibbles, int kOutputs, int kRows>
inline void integer_tile(const LinearCall& call, int o, int first_row) {
  const Matrix& m = *call.matrix;
  const ByteTable table = load_byte_table(m.byte_table);
  const bool grouped = m.group < m.inputs || kNibbles;
  const uint8_t* x = call.x.codes + first_row * call.x.stride;
  IntegerRow w[kOutputs];
#pragma GCC unroll 8
  for (int i = 0; i < kOutputs; i++) w[i] = IntegerRow(m, o + i);
  float value[kOutputs][kRows];
  const Ahead ahead(kNibbles ? m.inputs / 2 : m.inputs, kOutputs);
  auto fetch = [&](int64_t k) {
    const int64_t at = ahead(kNibbles ? k / 2 : k);
#pragma GCC unroll 8
    for (int i = 0; i < kOutputs; i++) prefetch(w[i].codes + at);
  };
  if (grouped) {
    Lanes acc[kOutputs][kRows];
#pragma GCC unroll 8
    for (int i = 0; i < kOutputs; i++)
#pragma GCC unroll 8
      for (int r = 0; r < kRows; r++) acc[i][r] = zero();
    for (int64_t k = 0; k < m.inputs; k += 64) {
      fetch(k);
#pragma GCC unroll 8
      for (int i = 0; i < kOutputs; i++) {
        const Bytes weights = integer_weights<kNibbles>(m, w[i], k, table);
        const Lanes scale = of_groups<kNibbles>(m, w[i].scales, k);
        const Ints correction = subtract(zero_ints(), correct(zero_ints(), weights));
#pragma GCC unroll 8
        for (int r = 0; r < kRows; r++) {
          const Ints products = dot(correction, load_bytes(x + r * call.x.stride + k), weights);
          acc[i][r] = fma(to_float(products), scale, acc[i][r]);
        }
      }
      if (m.minima) add_minima<kNibbles, kOutputs, kRows>(m, w, x, call.x.stride, k, acc);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kOutputs; i++)
#pragma GCC unroll 8
      for (int r = 0; r < kRows; r++) value[i][r] = sum(acc[i][r]) * call.x.scales[first_row + r];
  } else {
    Ints acc[kOutputs][kRows], correction[kOutputs];
#pragma GCC unroll 8
    for (int i = 0; i < kOutputs; i++) {
      correction[i] = zero_ints();
#pragma GCC unroll 8
      for (int r = 0; r < kRows; r++) acc[i][r] = zero_ints();
    }
    auto step = [&](int64_t k, auto&& weights_of) {
#pragma GCC unroll 8
      for (int i = 0; i < kOutputs; i++) {
        const Bytes weights = weights_of(i);
        correction[i] = correct(correction[i], weights);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; r++) acc[i][r] = dot(acc[i][r], load_bytes(x + r * call.x.stride + k), weights);
      }
    };
    int64_t k = 0;
    for (; k + 64 <= m.inputs; k += 64) {
      fetch(k);
      step(k, [&](int i) { return load_bytes(w[i].codes + k); });
    }
    if (k < m.inputs) step(k, [&](int i) { return integer_weights<kNibbles>(m, w[i], k, table); });
#pragma GCC unroll 8
    for (int i = 0; i < kOutputs; i++)
#pragma GCC unroll 8
      for (int r = 0; r < kRows; r++) {
        const float exact = static_cast<float>(total(subtract(acc[i][r], correction[i])));
        value[i][r] = exact * call.x.scales[first_row + r] * m.scales[o + i];
      }
  }
  for (int i = 0; i < kOutputs; i++)
    for (int r = 0; r < kRows; r++) finish<false>(call, first_row + r, o + i, value[i][r]);
}

template <bool kNibbles, int kRows>
inline void integer_band(const LinearCall& call, int begin, int end, int row) {
  constexpr int kOutputs = kTileOutputs[kRows];
  int o = begin;
  for (; o + kOutputs <= end; o += kOutputs) integer_tile<kNibbles, kOutputs, kRows>(call, o, row);
  for (; o < end; o++) integer_tile<kNibbles, 1, kRows>(call, o, row);
}

template <bool kNibbles, int kRows = kMaxRows>
inline void integer_band_of(int rows, const LinearCall& call, int begin, int end, int row) {
  if (rows == kRows) return integer_band<kNibbles, kRows>(call, begin, end, row);
  if constexpr (kRows > 1) integer_band_of<kNibbles, kRows - 1>(rows, call, begin, end, row);
}

template <bool kNibbles>
void integer_linear(const LinearCall& call) {
  const int tiles = (call.rows + kMaxRows - 1) / kMaxRows;
  for (int begin = call.begin; begin < call.end; begin += kScratchOutputs) {
    const int end = begin + kScratchOutputs < call.end && tiles > 1 ? begin + kScratchOutputs : call.end;
    for (int i = 0, row = 0; i < tiles; i++) {
      const int next = static_cast<int>(static_cast<int64_t>(call.rows) * (i + 1) / tiles);
      integer_band_of<kNibbles>(next - row, call, begin, end, row);
      row = next;
    }
    if (tiles == 1) break;
  }
}

}  // namespace
