// A whole decoder step in one parallel region: embedding, layers, attention over the caller's cache; and lm_head.
//
// Work is divided by outputs, in fixed ranges, so that a weight is read by the same thread in every step. What a stage
// needs of the one before it (normalised, merged, quantised rows) every thread prepares for itself while rows are few:
// that is cheaper than another barrier.
#pragma once
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "matrix.h"
#include "thread_pool.h"

namespace qspec {

struct NormWeights {
  const float* weight = nullptr;
  const float* bias = nullptr;  // LayerNorm; null: RMSNorm
};

struct LayerWeights {
  Matrix qkv, attention_out, mlp_in, mlp_out;
  NormWeights attention_norm, mlp_norm;
  const float* q_norm = nullptr;  // [head_dim], or null
  const float* k_norm = nullptr;
};

struct Model {
  int32_t vocab, hidden, heads, kv_heads, head_dim, intermediate, max_positions;
  float norm_eps;
  bool gated, gelu;
  Matrix embedding, lm_head;
  const float* position_embed = nullptr;  // [positions, hidden], or null
  const float* cos = nullptr;             // [max_positions, head_dim], or null
  const float* sin = nullptr;
  NormWeights final_norm;
  std::vector<LayerWeights> layers;
};

// Strides in floats; the last two dimensions, [block or k_max, head_dim], are contiguous.
struct Cache {
  float* keys = nullptr;  // [layers, blocks, kv_heads, block, head_dim]
  float* values = nullptr;
  int64_t layer_stride = 0, block_stride = 0, head_stride = 0;
  int32_t blocks = 0, block_size = 0;
  float* tail_keys = nullptr;  // [layers, slots, kv_heads, k_max, head_dim]
  float* tail_values = nullptr;
  int64_t tail_layer_stride = 0, tail_slot_stride = 0, tail_head_stride = 0;
  int32_t slots = 0, tail_size = 0;
};

// Adjacent positions of one sequence, the rows first_row, first_row + 1, … of the step.
struct Span {
  int32_t first_row, rows, start;
  int32_t context;  // positions below lie in blocks, later ones in the tail; verification: all in blocks
  int32_t slot;     // of the tail
  std::vector<int32_t> block_ids;
};

class Decoder {
 public:
  Decoder(Model model, const Kernels& kernels, std::shared_ptr<ThreadPool> pool);

  // The last layer's output, before the final norm, of all rows: `out` [rows, hidden]. Writes keys and values.
  // std::invalid_argument where a token, position, block or slot does not exist.
  void hidden(const std::vector<int32_t>& tokens, const std::vector<Span>& spans, const Cache& cache, float* out);
  // Final norm and lm_head: `hidden` [rows, hidden] -> `out` [rows, vocab].
  void logits(const float* hidden, int32_t rows, float* out);
  // The index of the largest logit of each row, the lowest one of equals; of the first NaN if there is one.
  void greedy(const float* hidden, int32_t rows, int64_t* out);

 private:
  struct Task {
    int32_t span, kv_head;
    int32_t chunk;      // -1: all chunks of rows first..last
    int32_t first, last;
  };
  struct Scratch {
    std::vector<float> values, row, decoded, part, block;
    std::vector<uint8_t> codes;
    std::vector<float> scales;
  };
  struct Step;

  void check(const std::vector<int32_t>& tokens, const std::vector<Span>& spans, const Cache& cache) const;
  void plan_attention(const std::vector<Span>& spans, int32_t rows);
  void reserve(int32_t rows);
  void work(const Step& step, int thread);
  void embed(const Step& step, int thread);
  void write_heads(const Step& step, int32_t layer, int32_t first_head, int32_t last_head);
  void attend(const Step& step, int32_t layer, int thread);
  void mixed_row(int32_t row, float* out, Scratch& scratch) const;
  void normalise(const NormWeights& norm, const float* x, float* out) const;
  KeyRun key_run(const Cache& cache, const Span& span, int32_t layer, int32_t kv_head) const;
  // Prepare all rows for `matrix`: source(row, out) writes row's values.
  template <class Source>
  Rows prepare(const Matrix& matrix, int32_t rows, int thread, Source source);
  void multiply(const Matrix& matrix, const Rows& x, int32_t rows, int32_t begin, int32_t end, float* out,
                int64_t out_stride, bool add, int thread);

  const Model model_;
  const Kernels& kernels_;
  const std::shared_ptr<ThreadPool> pool_;
  std::mutex mutex_;
  int64_t widest_ = 0;                  // padded inputs of the widest layer
  std::vector<Scratch> scratch_;        // one per thread
  Scratch shared_;                      // prepared rows, when they are many
  std::vector<float> qkv_, mixed_, middle_, up_, parts_;
  std::vector<Task> tasks_;
  std::vector<int64_t> part_of_row_;    // where a row's parts start; -1: its attention is in mixed_
  std::vector<int32_t> position_of_row_, span_of_row_;
};

}  // namespace qspec
