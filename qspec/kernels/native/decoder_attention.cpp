// The decoder's attention: who attends to what, and where keys and values lie. Few rows of a sequence are attended chunk by
// chunk, each chunk a task, and merged where they are used; a long run is attended row by row.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "step.h"

namespace qspec {
namespace {

constexpr int32_t kRowsPerTask = 4; // rows of a long run (a prompt) that are attended by one task

}  // namespace

void Decoder::plan_attention(const std::vector<Span>& spans, int32_t rows) {
  tasks_.clear();
  part_of_row_.assign(static_cast<size_t>(rows), -1);
  position_of_row_.resize(static_cast<size_t>(rows));
  span_of_row_.resize(static_cast<size_t>(rows));
  const int64_t part = model_.head_dim + 2;
  int64_t size = 0;
  for (int32_t i = 0; i < static_cast<int32_t>(spans.size()); i++) {
    const Span& span = spans[static_cast<size_t>(i)];
    for (int32_t r = 0; r < span.rows; r++) {
      position_of_row_[static_cast<size_t>(span.first_row + r)] = span.start + r;
      span_of_row_[static_cast<size_t>(span.first_row + r)] = i;
    }
    if (span.rows > kFewRows) {
      // Late rows see more keys: tasks go round the threads from the last row to the first.
      for (int32_t last = span.rows; last > 0; last -= kRowsPerTask)
        for (int32_t head = 0; head < model_.kv_heads; head++)
          tasks_.push_back({i, head, -1, std::max(0, last - kRowsPerTask), last});
      continue;
    }
    for (int32_t r = 0; r < span.rows; r++) {
      part_of_row_[static_cast<size_t>(span.first_row + r)] = size;
      size += part * model_.heads * ((span.start + r) / kChunk + 1);
    }
    for (int32_t chunk = 0; chunk <= (span.start + span.rows - 1) / kChunk; chunk++)
      for (int32_t head = 0; head < model_.kv_heads; head++) tasks_.push_back({i, head, chunk, 0, span.rows});
  }
  grow(parts_, size);
}

KeyRun Decoder::key_run(const Cache& cache, const Span& span, int32_t layer, int32_t kv_head) const {
  KeyRun run{};
  const int64_t at = layer * cache.layer_stride + kv_head * cache.head_stride;
  run.keys = cache.keys + at, run.values = cache.values + at;
  run.block_ids = span.block_ids.data();
  run.block_stride = cache.block_stride, run.block_size = cache.block_size, run.context = span.context;
  if (cache.tail_keys) {
    const int64_t tail =
        layer * cache.tail_layer_stride + span.slot * cache.tail_slot_stride + kv_head * cache.tail_head_stride;
    run.tail_keys = cache.tail_keys + tail, run.tail_values = cache.tail_values + tail;
  }
  return run;
}

// Heads first..last of the projections: norm and rotation of queries and keys; keys and values go to the cache.
void Decoder::write_heads(const Step& step, int32_t layer, int32_t first_head, int32_t last_head) {
  const LayerWeights& weights = model_.layers[static_cast<size_t>(layer)];
  const int32_t heads = model_.heads, kv_heads = model_.kv_heads, size = model_.head_dim;
  const int64_t stride = int64_t{heads + 2 * kv_heads} * size;
  for (int32_t row = 0; row < step.rows; row++) {
    const int32_t position = position_of_row_[static_cast<size_t>(row)];
    const Span& span = step.spans[static_cast<size_t>(span_of_row_[static_cast<size_t>(row)])];
    for (int32_t head = first_head; head < last_head; head++) {
      float* x = qkv_.data() + row * stride + int64_t{head} * size;
      if (head < heads + kv_heads) {
        const float* norm = head < heads ? weights.q_norm : weights.k_norm;
        if (norm) kernels_.rms_norm(x, norm, model_.norm_eps, size, x);
        if (model_.cos)
          kernels_.rotate(x, model_.cos + int64_t{position} * size, model_.sin + int64_t{position} * size, size);
        if (head < heads) continue;
      }
      const bool key = head < heads + kv_heads;
      const KeyRun run = key_run(step.cache, span, layer, head - heads - (key ? 0 : kv_heads));
      const float* target;
      if (position < run.context) {
        const int64_t at = run.block_ids[position / run.block_size] * run.block_stride +
                           int64_t{position % run.block_size} * size;
        target = (key ? run.keys : run.values) + at;
      } else {
        target = (key ? run.tail_keys : run.tail_values) + int64_t{position - run.context} * size;
      }
      std::memcpy(const_cast<float*>(target), x, static_cast<size_t>(size) * sizeof(float));
    }
  }
}

void Decoder::attend(const Step& step, int32_t layer, int thread) {
  const int32_t heads = model_.heads, size = model_.head_dim, group = heads / model_.kv_heads;
  const int64_t stride = int64_t{heads + 2 * model_.kv_heads} * size, part_size = size + 2;
  const float scale = 1.0f / std::sqrt(static_cast<float>(size));
  float* local = scratch_[static_cast<size_t>(thread)].part.data();
  for (size_t i = static_cast<size_t>(thread); i < tasks_.size(); i += static_cast<size_t>(pool_->threads())) {
    const Task& task = tasks_[i];
    const Span& span = step.spans[static_cast<size_t>(task.span)];
    const KeyRun run = key_run(step.cache, span, layer, task.kv_head);
    const int32_t head = task.kv_head * group;
    for (int32_t r = task.first; r < task.last; r++) {
      const int64_t row = span.first_row + r;
      const int32_t visible = span.start + r + 1, chunks = (visible + kChunk - 1) / kChunk;
      const float* q = qkv_.data() + row * stride + int64_t{head} * size;
      if (task.chunk >= 0) {
        const int32_t first = task.chunk * kChunk;
        if (first >= visible) continue;
        float* part = parts_.data() + part_of_row_[static_cast<size_t>(row)] +
                      (int64_t{head} * chunks + task.chunk) * part_size;
        kernels_.attend_chunk(q, group, size, scale, run, first, std::min(kChunk, visible - first), part,
                              chunks * part_size);
        continue;
      }
      float* running = local + group * part_size;
      for (int32_t h = 0; h < group; h++) {
        std::fill_n(running + h * part_size, part_size, 0.0f);
        running[h * part_size] = -std::numeric_limits<float>::infinity();
      }
      for (int32_t chunk = 0; chunk < chunks; chunk++) {
        const int32_t first = chunk * kChunk;
        kernels_.attend_chunk(q, group, size, scale, run, first, std::min(kChunk, visible - first), local, part_size);
        for (int32_t h = 0; h < group; h++)
          kernels_.merge_part(running + h * part_size, local + h * part_size, size);
      }
      float* out = mixed_.data() + (row * heads + head) * size;
      for (int32_t h = 0; h < group; h++) kernels_.finish_part(running + h * part_size, size, out + h * size);
    }
  }
}

// The attention of one row, all heads: its parts merged.
void Decoder::mixed_row(int32_t row, float* out, Scratch& scratch) const {
  const int32_t heads = model_.heads, size = model_.head_dim;
  const int64_t part_size = size + 2, start = part_of_row_[static_cast<size_t>(row)];
  if (start < 0) {
    std::copy_n(mixed_.data() + int64_t{row} * heads * size, int64_t{heads} * size, out);
    return;
  }
  const int32_t chunks = position_of_row_[static_cast<size_t>(row)] / kChunk + 1;
  float* running = scratch.part.data();
  for (int32_t head = 0; head < heads; head++) {
    std::fill_n(running, part_size, 0.0f);
    running[0] = -std::numeric_limits<float>::infinity();
    const float* part = parts_.data() + start + int64_t{head} * chunks * part_size;
    for (int32_t chunk = 0; chunk < chunks; chunk++) kernels_.merge_part(running, part + chunk * part_size, size);
    kernels_.finish_part(running, size, out + int64_t{head} * size);
  }
}

}  // namespace qspec
