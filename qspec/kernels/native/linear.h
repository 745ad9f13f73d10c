// Linear layers.
//
// Every output has one chain: sixteen lanes, of which lane j takes the inputs k = j (mod 16) in ascending order by fused
// multiply-add, then one tree over the lanes, then the row's scale, then the bias. How many rows or outputs are computed
// together changes which chains run side by side and nothing in any of them.
#pragma once
#include "formats.h"

namespace {

using qspec::Activations;
using qspec::kScratchOutputs;
using qspec::LinearCall;
using qspec::padded_inputs;

constexpr int64_t kAhead = 1024;  // bytes of each row of a tile that are fetched before they are needed

// Where the bytes lie that follow those at `at` of a tile's rows by kAhead, when a tile's rows are read side by side and
// the next tile's after them.
struct Ahead {
  int64_t row_bytes, rest, jump, wrap;
  Ahead(int64_t row_bytes, int outputs)
      : row_bytes(row_bytes), rest(kAhead % row_bytes), jump(kAhead / row_bytes * row_bytes * outputs),
        wrap((outputs - 1) * row_bytes) {}
  int64_t operator()(int64_t at) const {
    at += rest;
    return (at < row_bytes ? at : at + wrap) + jump;
  }
};

template <class F, int kOutputs>
inline void prefetch_rows(const typename F::Row* w, int64_t at) {
#pragma GCC unroll 8
  for (int i = 0; i < kOutputs; i++) {
    prefetch(w[i].p + at);
    if constexpr (F::kBits == 32) prefetch(w[i].p + at + 64);
    if constexpr (F::kPlanes) prefetch(w[i].q + at);
  }
}

// sums[r * kOutputs + i] of outputs o.. for rows x, x + stride, …
template <class F, int kOutputs, int kRows>
inline void tile(const Matrix& m, int64_t o, const float* x, int64_t stride, float* sums) {
  typename F::Row w[kOutputs];
#pragma GCC unroll 8
  for (int i = 0; i < kOutputs; i++) w[i] = typename F::Row(m, o + i);
  Lanes acc[kOutputs][kRows];
#pragma GCC unroll 8
  for (int i = 0; i < kOutputs; i++)
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r++) acc[i][r] = zero();

  auto multiply = [&](int64_t k, int i, Lanes a, Lanes b) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r++) {
      acc[i][r] = fma(a, load(x + r * stride + k), acc[i][r]);
      acc[i][r] = fma(b, load(x + r * stride + k + 16), acc[i][r]);
    }
  };
  auto step = [&](int64_t k) {
#pragma GCC unroll 8
    for (int i = 0; i < kOutputs; i++) {
      Lanes a, b;
      w[i].decode(k, a, b);
      multiply(k, i, a, b);
    }
  };
  const Ahead ahead(static_cast<int64_t>(m.inputs) * F::kBits / 8, kOutputs);
  constexpr int64_t kLine = F::kBits == 32 ? 32 : 64 * 8 / F::kBits;  // weights in the lines fetched at a time
  if constexpr (F::kGroups) {
    for (int64_t k = 0, g = 0; k < m.inputs; g++) {
#pragma GCC unroll 8
      for (int i = 0; i < kOutputs; i++) w[i].group(m, static_cast<int>(g));
      for (const int64_t end = k + m.group; k < end; k += 32) {
        if (k % kLine == 0) prefetch_rows<F, kOutputs>(w, ahead(k * F::kBits / 8));
        step(k);
      }
    }
  } else {
    const int64_t whole = m.inputs & ~int64_t{31};
    int64_t k = 0;
    for (; k + kLine <= whole; k += kLine) {
      prefetch_rows<F, kOutputs>(w, ahead(k * F::kBits / 8));
#pragma GCC unroll 2
      for (int64_t part = 0; part < kLine; part += 32) step(k + part);
    }
    for (; k < whole; k += 32) step(k);
    if (whole < m.inputs)
      for (int i = 0; i < kOutputs; i++) {
        Lanes a, b;
        decode_tail<F>(m, w[i], whole, a, b);
        multiply(whole, i, a, b);
      }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; r++) {
    if constexpr (kOutputs % 4 == 0) {
#pragma GCC unroll 2
      for (int i = 0; i < kOutputs; i += 4)
        sum4(acc[i][r], acc[i + 1][r], acc[i + 2][r], acc[i + 3][r], sums + r * kOutputs + i);
    } else {
#pragma GCC unroll 8
      for (int i = 0; i < kOutputs; i++) sums[r * kOutputs + i] = sum(acc[i][r]);
    }
  }
}

// What happens to a finished sum.
template <bool kRowScale>
inline void finish(const LinearCall& call, int row, int o, float value) {
  const Matrix& m = *call.matrix;
  if constexpr (kRowScale) value *= m.scales[o] * m.scale_factor;
  if (m.bias) value += m.bias[o];
  float* out = call.out + row * call.out_stride + (o - call.begin);
  *out = call.add ? value + *out : value;
}

template <class F, bool kRowScale, int kOutputs, int kRows>
inline void tile_and_finish(const LinearCall& call, const Matrix& m, int64_t at, int o, int first_row) {
  float sums[kOutputs * kRows];
  tile<F, kOutputs, kRows>(m, at, call.x.values + first_row * call.x.stride, call.x.stride, sums);
  for (int r = 0; r < kRows; r++)
    for (int i = 0; i < kOutputs; i++) finish<kRowScale>(call, first_row + r, o + i, sums[r * kOutputs + i]);
}

// Outputs begin..end for kRows rows: full tiles, then single outputs. `shift` is where output 0 lies in m.
template <class F, bool kRowScale, int kRows>
inline void band(const LinearCall& call, const Matrix& m, int64_t shift, int begin, int end, int first_row) {
  constexpr int kOutputs = F::kPlanes && kTileOutputs[kRows] > 4 ? 4 : kTileOutputs[kRows];
  int o = begin;
  for (; o + kOutputs <= end; o += kOutputs)
    tile_and_finish<F, kRowScale, kOutputs, kRows>(call, m, o + shift, o, first_row);
  for (; o < end; o++) tile_and_finish<F, kRowScale, 1, kRows>(call, m, o + shift, o, first_row);
}

template <class F, bool kRowScale, int kRows = kMaxRows>
inline void band_of(int rows, const LinearCall& call, const Matrix& m, int64_t shift, int begin, int end, int row) {
  if (rows == kRows) return band<F, kRowScale, kRows>(call, m, shift, begin, end, row);
  if constexpr (kRows > 1) band_of<F, kRowScale, kRows - 1>(rows, call, m, shift, begin, end, row);
}

// Many rows: a few outputs become fp32 in a scratch that stays in the cache, and all rows pass over it.
template <class F>
void many_rows(const LinearCall& call) {
  const Matrix& m = *call.matrix;
  const int64_t padded = padded_inputs(m.inputs);
  Matrix decoded{};
  decoded.inputs = static_cast<int32_t>(padded);
  decoded.codes = reinterpret_cast<const uint8_t*>(call.scratch);
  // Rows in tiles of nearly equal size.
  const int tiles = (call.rows + kWideRows - 1) / kWideRows;
  for (int begin = call.begin; begin < call.end; begin += kScratchOutputs) {
    const int end = begin + kScratchOutputs < call.end ? begin + kScratchOutputs : call.end;
    for (int o = begin; o < end; o++) {
      typename F::Row row(m, o);
      float* out = call.scratch + (o - begin) * padded;
      for (int64_t k = 0; k < padded; k += 32) {
        Lanes a = zero(), b = zero();
        if constexpr (F::kGroups) {
          if (k < m.inputs && k % m.group == 0) row.group(m, static_cast<int>(k / m.group));
        }
        if (k + 32 <= m.inputs) {
          int64_t at = (k + m.inputs * int64_t{4}) * F::kBits / 8;
          prefetch(row.p + at);
          if constexpr (F::kPlanes) prefetch(row.q + at);
          row.decode(k, a, b);
        } else if (k < m.inputs) {
          decode_tail<F>(m, row, k, a, b);
        }
        store(out + k, a), store(out + k + 16, b);
      }
    }
    for (int i = 0, row = 0; i < tiles; i++) {
      const int next = static_cast<int>(static_cast<int64_t>(call.rows) * (i + 1) / tiles);
      band_of<Fp32Format, F::kRowScale>(next - row, call, decoded, -begin, begin, end, row);
      row = next;
    }
  }
}

template <class F>
void linear_in(const LinearCall& call) {
  if (call.rows > kMaxRows) return many_rows<F>(call);
  band_of<F, F::kRowScale>(call.rows, call, *call.matrix, 0, call.begin, call.end, 0);
}

template <class F>
void decode_row_in(const Matrix& m, int32_t index, float* out) {
  typename F::Row row(m, index);
  const float scale = F::kRowScale ? m.scales[index] * m.scale_factor : 1.0f;
  for (int64_t k = 0; k < m.inputs; k += 32) {
    if constexpr (F::kGroups) {
      if (k % m.group == 0) row.group(m, static_cast<int>(k / m.group));
    }
    Lanes a, b;
    if (k + 32 <= m.inputs) row.decode(k, a, b);
    else decode_tail<F>(m, row, k, a, b);
    float pair[32];
    store(pair, a), store(pair + 16, b);
    const int64_t count = m.inputs - k < 32 ? m.inputs - k : 32;
    for (int64_t i = 0; i < count; i++)
      out[k + i] = (m.nibbles() ? pair[i / 2 + 16 * (i % 2)] : pair[i]) * scale;
  }
}

}  // namespace
