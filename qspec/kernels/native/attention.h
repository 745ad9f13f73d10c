// Attention in chunks of 64 absolute positions: a chunk's scores, exponentials and weighted values are computed against
// the chunk's own maximum and merged from the first chunk to the last. A row's bits depend on its query and on the keys up
// to its position, not on rows, blocks or threads beside it, nor on whether a key lies in a block or in the tail.
#pragma once
#include "elementwise.h"

namespace {

using qspec::kChunk;
using qspec::KeyRun;

// Where keys first..first+count-1 and their values lie.
inline void locate(const KeyRun& run, int32_t head_dim, int32_t first, int32_t count, const float** keys,
                   const float** values) {
  int32_t i = 0;
  while (i < count) {
    const int32_t position = first + i;
    int64_t at;
    int32_t length;
    const float *key, *value;
    if (position < run.context) {
      const int32_t offset = position % run.block_size;
      at = run.block_ids[position / run.block_size] * run.block_stride + int64_t{offset} * head_dim;
      length = run.block_size - offset < run.context - position ? run.block_size - offset : run.context - position;
      key = run.keys + at, value = run.values + at;
    } else {
      at = int64_t{position - run.context} * head_dim;
      length = count;
      key = run.tail_keys + at, value = run.tail_values + at;
    }
    for (int32_t j = 0; j < length && i < count; j++, i++) {
      keys[i] = key + int64_t{j} * head_dim;
      values[i] = value + int64_t{j} * head_dim;
    }
  }
}

inline void score_keys(const float* q, int32_t head_dim, float scale, const float* const* keys, int32_t count,
                       float* scores) {
  const int32_t whole = head_dim & ~15;
  int32_t i = 0;
  for (; i + 4 <= count; i += 4) {
    const float *a = keys[i], *b = keys[i + 1], *c = keys[i + 2], *d = keys[i + 3];
    Lanes sa = zero(), sb = zero(), sc = zero(), sd = zero();
    for (int32_t k = 0; k < whole; k += 16) {
      const Lanes x = load(q + k);
      sa = fma(x, load(a + k), sa), sb = fma(x, load(b + k), sb);
      sc = fma(x, load(c + k), sc), sd = fma(x, load(d + k), sd);
    }
    if (const int32_t rest = head_dim - whole) {
      const Lanes x = load_part(q + whole, rest);
      sa = fma(x, load_part(a + whole, rest), sa), sb = fma(x, load_part(b + whole, rest), sb);
      sc = fma(x, load_part(c + whole, rest), sc), sd = fma(x, load_part(d + whole, rest), sd);
    }
    sum4(sa, sb, sc, sd, scores + i);
  }
  for (; i < count; i++) {
    Lanes s = zero();
    for (int32_t k = 0; k < whole; k += 16) s = fma(load(q + k), load(keys[i] + k), s);
    if (const int32_t rest = head_dim - whole) s = fma(load_part(q + whole, rest), load_part(keys[i] + whole, rest), s);
    scores[i] = sum(s);
  }
  for (i = 0; i < count; i++) scores[i] *= scale;
  for (; i < kChunk; i++) scores[i] = -__builtin_inff();
}

// kQueries rows of weights times the values, 16 * kSlices numbers of the head from d on.
template <int kQueries, int kSlices>
inline void mix_slices(const float (*weights)[kChunk], const float* const* values, int32_t count, int32_t d, float* part,
                       int64_t part_stride) {
  Lanes acc[kQueries][kSlices];
#pragma GCC unroll 4
  for (int q = 0; q < kQueries; q++)
#pragma GCC unroll 4
    for (int s = 0; s < kSlices; s++) acc[q][s] = zero();
  for (int32_t i = 0; i < count; i++) {
    const float* v = values[i] + d;
#pragma GCC unroll 4
    for (int s = 0; s < kSlices; s++) {
      const Lanes x = load(v + 16 * s);
#pragma GCC unroll 4
      for (int q = 0; q < kQueries; q++) acc[q][s] = fma(broadcast(weights[q][i]), x, acc[q][s]);
    }
  }
#pragma GCC unroll 4
  for (int q = 0; q < kQueries; q++)
#pragma GCC unroll 4
    for (int s = 0; s < kSlices; s++) store(part + q * part_stride + 2 + d + 16 * s, acc[q][s]);
}

template <int kQueries>
inline void mix_values(const float (*weights)[kChunk], const float* const* values, int32_t count, int32_t head_dim,
                       float* part, int64_t part_stride) {
  constexpr int kSlices = kAttentionSlices[kQueries];
  int32_t d = 0;
  for (; d + 16 * kSlices <= head_dim; d += 16 * kSlices)
    mix_slices<kQueries, kSlices>(weights, values, count, d, part, part_stride);
  for (; d + 16 <= head_dim; d += 16) mix_slices<kQueries, 1>(weights, values, count, d, part, part_stride);
  if (d == head_dim) return;
  for (int q = 0; q < kQueries; q++) {
    Lanes acc = zero();
    for (int32_t i = 0; i < count; i++)
      acc = fma(broadcast(weights[q][i]), load_part(values[i] + d, head_dim - d), acc);
    store_part(part + q * part_stride + 2 + d, acc, head_dim - d);
  }
}

void attend_chunk(const float* q, int32_t queries, int32_t head_dim, float scale, const KeyRun& run, int32_t first,
                  int32_t count, float* part, int64_t part_stride) {
  const float *keys[kChunk], *values[kChunk];
  locate(run, head_dim, first, count, keys, values);
  while (queries > 0) {
    const int now = queries < 4 ? queries : 4;
    alignas(64) float weights[4][kChunk];
    for (int h = 0; h < now; h++) {
      float* w = weights[h];
      score_keys(q + int64_t{h} * head_dim, head_dim, scale, keys, count, w);
      Lanes top = load(w);
      for (int i = 16; i < kChunk; i += 16) top = max(top, load(w + i));
      const float maximum = largest(top);
      Lanes normaliser = zero();
      for (int i = 0; i < kChunk; i += 16) {
        const Lanes e = exponential(sub(load(w + i), broadcast(maximum)));
        normaliser = add(normaliser, e);
        store(w + i, e);
      }
      part[h * part_stride] = maximum;
      part[h * part_stride + 1] = sum(normaliser);
    }
    switch (now) {
      case 1: mix_values<1>(weights, values, count, head_dim, part, part_stride); break;
      case 2: mix_values<2>(weights, values, count, head_dim, part, part_stride); break;
      case 3: mix_values<3>(weights, values, count, head_dim, part, part_stride); break;
      default: mix_values<4>(weights, values, count, head_dim, part, part_stride); break;
    }
    q += int64_t{now} * head_dim, part += now * part_stride, queries -= now;
  }
}

void merge_part(float* running, const float* part, int32_t head_dim) {
  const float maximum = part[0] > running[0] ? part[0] : running[0];
  alignas(64) float factors[16] = {running[0] - maximum, part[0] - maximum};
  store(factors, exponential(load(factors)));
  const float old = factors[0], now = factors[1];
  running[0] = maximum;
  running[1] = __builtin_fmaf(part[1], now, running[1] * old);
  for (int32_t d = 0; d < head_dim; d += 16) {
    const int32_t n = head_dim - d < 16 ? head_dim - d : 16;
    const Lanes kept = mul(load_part(running + 2 + d, n), broadcast(old));
    store_part(running + 2 + d, fma(load_part(part + 2 + d, n), broadcast(now), kept), n);
  }
}

void finish_part(const float* running, int32_t head_dim, float* out) {
  for (int32_t d = 0; d < head_dim; d++) out[d] = running[2 + d] / running[1];
}

}  // namespace
