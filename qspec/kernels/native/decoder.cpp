#include "decoder.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "step.h"

namespace qspec {
namespace {

constexpr int32_t kGreedyBlock = 512;

void require(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);
}

}  // namespace

Decoder::Decoder(Model model, const Kernels& kernels, std::shared_ptr<ThreadPool> pool)
    : model_(std::move(model)), kernels_(kernels), pool_(std::move(pool)) {
  widest_ = padded_inputs(std::max({model_.hidden, model_.intermediate, model_.heads * model_.head_dim}));
  scratch_.resize(static_cast<size_t>(pool_->threads()));
  for (Scratch& scratch : scratch_) {
    grow(scratch.values, kFewRows * widest_);
    grow(scratch.codes, kFewRows * widest_);
    grow(scratch.scales, kFewRows);
    grow(scratch.row, widest_);
    grow(scratch.decoded, kScratchOutputs * widest_);
    grow(scratch.part, int64_t{2} * (model_.heads / model_.kv_heads) * (model_.head_dim + 2));
  }
}

void Decoder::check(const std::vector<int32_t>& tokens, const std::vector<Span>& spans, const Cache& cache) const {
  for (int32_t token : tokens) require(token >= 0 && token < model_.vocab, "a token lies outside the vocabulary");
  int64_t next = 0;
  for (const Span& span : spans) {
    require(span.first_row == next && span.rows > 0, "the sequences' rows do not follow each other");
    next += span.rows;
    const int64_t stop = int64_t{span.start} + span.rows;
    require(span.start >= 0 && stop <= model_.max_positions, "a position lies beyond max_positions");
    const int64_t in_blocks = std::min<int64_t>(stop, span.context);
    require(span.context >= 0 && in_blocks <= static_cast<int64_t>(span.block_ids.size()) * cache.block_size,
            "a sequence's block table is shorter than its context");
    for (int32_t block : span.block_ids) require(block >= 0 && block < cache.blocks, "a block does not exist");
    if (stop > span.context) {
      require(span.start >= span.context, "a sequence's rows lie partly in blocks and partly in the tail");
      require(cache.tail_keys && span.slot >= 0 && span.slot < cache.slots, "a slot does not exist");
      require(stop - span.context <= cache.tail_size, "a position lies behind the end of the tail");
    }
  }
  require(next == static_cast<int64_t>(tokens.size()), "tokens and sequences differ in their number of rows");
}

void Decoder::reserve(int32_t rows) {
  grow(qkv_, int64_t{rows} * (model_.heads + 2 * model_.kv_heads) * model_.head_dim);
  grow(mixed_, int64_t{rows} * model_.heads * model_.head_dim);
  grow(middle_, int64_t{rows} * model_.intermediate);
  if (model_.gated) grow(up_, int64_t{rows} * model_.intermediate);
  if (rows > kFewRows) {
    grow(shared_.values, rows * widest_);
    grow(shared_.codes, rows * widest_);
    grow(shared_.scales, rows);
  }
}

template <class Source>
Rows Decoder::prepare(const Matrix& matrix, int32_t rows, int thread, Source source) {
  Scratch& own = scratch_[static_cast<size_t>(thread)];
  const bool few = rows <= kFewRows;
  Scratch& target = few ? own : shared_;
  const Range range = few ? Range{0, rows} : share(rows, 1, thread, pool_->threads());
  const int64_t stride = padded_inputs(matrix.inputs);
  for (int32_t row = range.begin; row < range.end; row++) {
    float* values = target.values.data() + row * stride;
    // What is reordered or quantised passes through the thread's own row; everything else is made in place.
    float* made = matrix.nibbles() || matrix.activations == Activations::kInt8 ? own.row.data() : values;
    source(row, made);
    kernels_.prepare_row(matrix, made, values, target.codes.data() + row * stride, target.scales.data() + row);
  }
  if (!few) pool_->barrier();
  return {target.values.data(), target.codes.data(), target.scales.data(), stride};
}

void Decoder::multiply(const Matrix& matrix, const Rows& x, int32_t rows, int32_t begin, int32_t end, float* out,
                       int64_t out_stride, bool add, int thread) {
  float* decoded = scratch_[static_cast<size_t>(thread)].decoded.data();
  kernels_.linear({&matrix, x, rows, begin, end, out, out_stride, add, decoded});
}

void Decoder::normalise(const NormWeights& norm, const float* x, float* out) const {
  if (norm.bias) kernels_.layer_norm(x, norm.weight, norm.bias, model_.norm_eps, model_.hidden, out);
  else kernels_.rms_norm(x, norm.weight, model_.norm_eps, model_.hidden, out);
}

void Decoder::embed(const Step& step, int thread) {
  const Range rows = share(step.rows, 1, thread, pool_->threads());
  for (int32_t row = rows.begin; row < rows.end; row++) {
    float* x = step.x + int64_t{row} * model_.hidden;
    kernels_.decode_row(model_.embedding, step.tokens[static_cast<size_t>(row)], x);
    if (!model_.position_embed) continue;
    const float* position = model_.position_embed + int64_t{position_of_row_[static_cast<size_t>(row)]} * model_.hidden;
    for (int32_t i = 0; i < model_.hidden; i++) x[i] += position[i];
  }
}

void Decoder::work(const Step& step, int thread) {
  const int32_t rows = step.rows, hidden = model_.hidden, middle = model_.intermediate, threads = pool_->threads();
  const int32_t all_heads = model_.heads + 2 * model_.kv_heads;
  const Range heads = share(all_heads, 1, thread, threads);
  const Range outputs = share(hidden, 16, thread, threads);
  const Range units = share(middle, 16, thread, threads);
  float* x = step.x;
  Scratch& scratch = scratch_[static_cast<size_t>(thread)];
  const auto normalised = [&](const NormWeights& norm) {
    return [&, norm](int32_t row, float* out) { normalise(norm, x + int64_t{row} * hidden, out); };
  };
  embed(step, thread);
  pool_->barrier();
  for (int32_t index = 0; index < static_cast<int32_t>(model_.layers.size()); index++) {
    const LayerWeights& layer = model_.layers[static_cast<size_t>(index)];
    Rows in = prepare(layer.qkv, rows, thread, normalised(layer.attention_norm));
    multiply(layer.qkv, in, rows, heads.begin * model_.head_dim, heads.end * model_.head_dim,
             qkv_.data() + int64_t{heads.begin} * model_.head_dim, int64_t{all_heads} * model_.head_dim, false, thread);
    write_heads(step, index, heads.begin, heads.end);
    pool_->barrier();
    attend(step, index, thread);
    pool_->barrier();
    in = prepare(layer.attention_out, rows, thread, [&](int32_t row, float* out) { mixed_row(row, out, scratch); });
    multiply(layer.attention_out, in, rows, outputs.begin, outputs.end, x + outputs.begin, hidden, true, thread);
    pool_->barrier();
    in = prepare(layer.mlp_in, rows, thread, normalised(layer.mlp_norm));
    float* gate = middle_.data() + units.begin;
    float* up = model_.gated ? up_.data() + units.begin : nullptr;
    multiply(layer.mlp_in, in, rows, units.begin, units.end, gate, middle, false, thread);
    if (up) multiply(layer.mlp_in, in, rows, middle + units.begin, middle + units.end, up, middle, false, thread);
    for (int32_t row = 0; row < rows; row++) {
      float* g = gate + int64_t{row} * middle;
      (model_.gelu ? kernels_.gelu_mul : kernels_.silu_mul)(g, up ? up + int64_t{row} * middle : nullptr,
                                                            units.end - units.begin);
    }
    pool_->barrier();
    in = prepare(layer.mlp_out, rows, thread, [&](int32_t row, float* out) {
      std::copy_n(middle_.data() + int64_t{row} * middle, middle, out);
    });
    multiply(layer.mlp_out, in, rows, outputs.begin, outputs.end, x + outputs.begin, hidden, true, thread);
    pool_->barrier();
  }
}

void Decoder::hidden(const std::vector<int32_t>& tokens, const std::vector<Span>& spans, const Cache& cache,
                     float* out) {
  const std::lock_guard<std::mutex> lock(mutex_);
  check(tokens, spans, cache);
  const auto rows = static_cast<int32_t>(tokens.size());
  if (rows == 0) return;
  plan_attention(spans, rows);
  reserve(rows);
  const Step step{tokens, spans, cache, rows, out};
  auto task = [&](int thread) { work(step, thread); };
  pool_->run(task);
}

void Decoder::logits(const float* hidden, int32_t rows, float* out) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (rows <= 0) return;
  reserve(rows);
  auto task = [&](int thread) {
    const Rows in = prepare(model_.lm_head, rows, thread, [&](int32_t row, float* to) {
      normalise(model_.final_norm, hidden + int64_t{row} * model_.hidden, to);
    });
    const Range words = share(model_.vocab, 16, thread, pool_->threads());
    multiply(model_.lm_head, in, rows, words.begin, words.end, out + words.begin, model_.vocab, false, thread);
  };
  pool_->run(task);
}

void Decoder::greedy(const float* hidden, int32_t rows, int64_t* out) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (rows <= 0) return;
  reserve(rows);
  struct Best {
    float value;
    int32_t index;
  };
  const int threads = pool_->threads();
  std::vector<Best> best(static_cast<size_t>(rows) * static_cast<size_t>(threads),
                         Best{-std::numeric_limits<float>::infinity(), -1});
  const auto take = [](Best& have, Best next) {  // NaN is larger than anything, and the first of equals stays
    const bool better = have.index < 0 || next.value > have.value || next.value != next.value;
    if (have.value == have.value && better) have = next;
  };
  for (Scratch& scratch : scratch_) grow(scratch.block, int64_t{rows} * kGreedyBlock);
  auto task = [&](int thread) {
    const Rows in = prepare(model_.lm_head, rows, thread, [&](int32_t row, float* to) {
      normalise(model_.final_norm, hidden + int64_t{row} * model_.hidden, to);
    });
    const Range words = share(model_.vocab, 16, thread, threads);
    float* block = scratch_[static_cast<size_t>(thread)].block.data();
    for (int32_t begin = words.begin; begin < words.end; begin += kGreedyBlock) {
      const int32_t end = std::min(begin + kGreedyBlock, words.end);
      multiply(model_.lm_head, in, rows, begin, end, block, kGreedyBlock, false, thread);
      for (int32_t row = 0; row < rows; row++) {
        Best found{};
        kernels_.argmax(block + int64_t{row} * kGreedyBlock, end - begin, &found.value, &found.index);
        found.index += begin;
        take(best[static_cast<size_t>(thread) * static_cast<size_t>(rows) + static_cast<size_t>(row)], found);
      }
    }
  };
  pool_->run(task);
  for (int32_t row = 0; row < rows; row++) {
    Best winner{-std::numeric_limits<float>::infinity(), -1};
    for (int thread = 0; thread < threads; thread++) {
      const Best& next = best[static_cast<size_t>(thread) * static_cast<size_t>(rows) + static_cast<size_t>(row)];
      if (next.index >= 0) take(winner, next);
    }
    out[row] = winner.index;
  }
}

}  // namespace qspec
