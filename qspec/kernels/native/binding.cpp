// The Python module. Tensors come in as addresses: shapes, strides and types are checked by the Python beside it
// (qspec/kernels/native/weights.py and decoder.py), which also keeps the tensors alive.
#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "decoder.h"
#include "instruction_sets.h"
#include "read_memory.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace qspec;

namespace {

// Counts up whenever the Python side and this file must change together.
constexpr int kInterface = 2;

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

const Kernels& kernels_named(const std::string& name) {
  for (const Kernels* kernels : usable_kernels())
    if (name == kernels->name) return *kernels;
  throw std::invalid_argument("this CPU has no instruction set " + name);
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* kernels : usable_kernels()) names.emplace_back(kernels->name);
  return names;
}

Matrix matrix(int format, int activations, int outputs, int inputs, int group, float scale_factor, uintptr_t codes,
              uintptr_t low, uintptr_t scales, uintptr_t zeros, uintptr_t minima, uintptr_t bias,
              const std::vector<float>& table) {
  Matrix m{};
  if (format < 0 || format >= kFormats || outputs < 1 || inputs < 1 || group < 1 || inputs % group)
    throw std::invalid_argument("no such matrix");
  m.format = static_cast<Format>(format), m.activations = static_cast<Activations>(activations);
  m.outputs = outputs, m.inputs = inputs, m.group = group, m.scale_factor = scale_factor;
  m.codes = at<uint8_t>(codes), m.low = at<uint8_t>(low), m.scales = at<float>(scales), m.zeros = at<uint8_t>(zeros);
  m.minima = at<float>(minima), m.bias = at<float>(bias);
  while ((2 << m.group_shift) <= group) m.group_shift++;
  if (group < inputs && ((1 << m.group_shift) != group || group < 32)) throw std::invalid_argument("no such groups");
  std::copy_n(table.begin(), std::min<size_t>(table.size(), 16), m.table);
  for (int code = 0; code < 16; code++) m.byte_table[code] = static_cast<int8_t>(m.table[code]);
  return m;
}

NormWeights norm(uintptr_t weight, uintptr_t bias) { return {at<float>(weight), at<float>(bias)}; }

void linear(const std::string& instruction_set, const Matrix& m, uintptr_t x, int rows, uintptr_t out,
            ThreadPool& pool) {
  const Kernels& kernels = kernels_named(instruction_set);
  const int64_t stride = padded_inputs(m.inputs);
  const auto threads = static_cast<int64_t>(pool.threads());
  std::vector<float> values(static_cast<size_t>(rows * stride)), scales(static_cast<size_t>(rows));
  std::vector<float> row(static_cast<size_t>(stride));
  std::vector<float> scratch(static_cast<size_t>(threads * stride * kScratchOutputs));
  std::vector<uint8_t> codes(static_cast<size_t>(rows * stride));
  for (int64_t r = 0; r < rows; r++) {
    std::memcpy(row.data(), at<float>(x) + r * m.inputs, static_cast<size_t>(m.inputs) * sizeof(float));
    kernels.prepare_row(m, row.data(), values.data() + r * stride, codes.data() + r * stride,
                        scales.data() + r);
  }
  auto work = [&](int thread) {
    const auto begin = static_cast<int32_t>(int64_t{m.outputs} * thread / threads);
    const auto end = static_cast<int32_t>(int64_t{m.outputs} * (thread + 1) / threads);
    kernels.linear({&m, {values.data(), codes.data(), scales.data(), stride}, rows, begin, end,
                    at<float>(out) + begin, m.outputs, false,
                    scratch.data() + thread * stride * kScratchOutputs});
  };
  pool.run(work);
}

void decode_rows(const std::string& instruction_set, const Matrix& m, uintptr_t out) {
  const Kernels& kernels = kernels_named(instruction_set);
  for (int32_t row = 0; row < m.outputs; row++) kernels.decode_row(m, row, at<float>(out) + int64_t{row} * m.inputs);
}

// Elementwise kernels by name over rows, for the tests of each of them.
void apply(const std::string& instruction_set, const std::string& name, uintptr_t x, uintptr_t second, uintptr_t third,
           float eps, int rows, int size, uintptr_t out) {
  const Kernels& kernels = kernels_named(instruction_set);
  for (int64_t r = 0; r < rows; r++) {
    float* from = at<float>(x) + r * size;
    float* to = at<float>(out) + r * size;
    const float *b = at<float>(second), *c = at<float>(third);
    if (name == "rms_norm") kernels.rms_norm(from, b, eps, size, to);
    else if (name == "layer_norm") kernels.layer_norm(from, b, c, eps, size, to);
    else {
      std::memcpy(to, from, static_cast<size_t>(size) * sizeof(float));
      if (name == "silu_mul") kernels.silu_mul(to, b ? b + r * size : nullptr, size);
      else if (name == "gelu_mul") kernels.gelu_mul(to, b ? b + r * size : nullptr, size);
      else if (name == "rotate") kernels.rotate(to, b + r * size, c + r * size, size);
      else throw std::invalid_argument("no kernel " + name);
    }
  }
}


void set_cache(Cache& cache, uintptr_t keys, uintptr_t values, int64_t layer_stride, int64_t block_stride,
               int64_t head_stride, int blocks, int block_size) {
  cache.keys = at<float>(keys), cache.values = at<float>(values);
  cache.layer_stride = layer_stride, cache.block_stride = block_stride, cache.head_stride = head_stride;
  cache.blocks = blocks, cache.block_size = block_size;
}

void set_tail(Cache& cache, uintptr_t keys, uintptr_t values, int64_t layer_stride, int64_t slot_stride,
              int64_t head_stride, int slots, int size) {
  cache.tail_keys = at<float>(keys), cache.tail_values = at<float>(values);
  cache.tail_layer_stride = layer_stride, cache.tail_slot_stride = slot_stride, cache.tail_head_stride = head_stride;
  cache.slots = slots, cache.tail_size = size;
}

}  // namespace

NB_MODULE(_native, m) {
  m.attr("INTERFACE") = kInterface;
  m.def("instruction_sets", &instruction_sets);

  nb::class_<ThreadPool>(m, "ThreadPool")
      .def(nb::init<int, int, bool>(), "threads"_a, "spin_microseconds"_a, "bind"_a)
      .def_prop_ro("threads", &ThreadPool::threads);
  nb::class_<Matrix>(m, "Matrix");
  m.def("matrix", &matrix, "format"_a, "activations"_a, "outputs"_a, "inputs"_a, "group"_a, "scale_factor"_a, "codes"_a,
        "low"_a, "scales"_a, "zeros"_a, "minima"_a, "bias"_a, "table"_a);
  nb::class_<NormWeights>(m, "Norm").def(nb::new_(&norm), "weight"_a, "bias"_a);
  nb::class_<LayerWeights>(m, "Layer")
      .def("__init__",
           [](LayerWeights* self, const Matrix& qkv, const Matrix& attention_out, const Matrix& mlp_in,
              const Matrix& mlp_out, const NormWeights& attention_norm, const NormWeights& mlp_norm, uintptr_t q_norm,
              uintptr_t k_norm) {
             new (self) LayerWeights{qkv,      attention_out,     mlp_in,           mlp_out, attention_norm,
                                     mlp_norm, at<float>(q_norm), at<float>(k_norm)};
           },
           "qkv"_a, "attention_out"_a, "mlp_in"_a, "mlp_out"_a, "attention_norm"_a, "mlp_norm"_a, "q_norm"_a,
           "k_norm"_a);
  nb::class_<Cache>(m, "Cache")
      .def(nb::init<>())
      .def("set_blocks", &set_cache, "keys"_a, "values"_a, "layer_stride"_a, "block_stride"_a, "head_stride"_a,
           "blocks"_a, "block_size"_a)
      .def("set_tail", &set_tail, "keys"_a, "values"_a, "layer_stride"_a, "slot_stride"_a, "head_stride"_a, "slots"_a,
           "size"_a);
  nb::class_<Span>(m, "Span").def(
      "__init__",
      [](Span* self, int first_row, int rows, int start, int context, int slot, const std::vector<int32_t>& block_ids) {
        new (self) Span{first_row, rows, start, context, slot, block_ids};
      },
      "first_row"_a, "rows"_a, "start"_a, "context"_a, "slot"_a, "block_ids"_a);

  nb::class_<Decoder>(m, "Decoder")
      .def("__init__",
           [](Decoder* self, const std::string& instruction_set, std::shared_ptr<ThreadPool> pool, int vocab,
              int hidden, int heads, int kv_heads, int head_dim, int intermediate, int max_positions, float norm_eps,
              bool gated, bool gelu, const Matrix& embedding, const Matrix& lm_head, uintptr_t position_embed,
              uintptr_t cos, uintptr_t sin, const NormWeights& final_norm, const std::vector<LayerWeights>& layers) {
             if (heads < 1 || kv_heads < 1 || heads % kv_heads || head_dim < 1)
               throw std::invalid_argument("no such decoder");
             Model model{vocab,    hidden, heads, kv_heads, head_dim,  intermediate, max_positions,
                         norm_eps, gated,  gelu,  embedding, lm_head, at<float>(position_embed), at<float>(cos),
                         at<float>(sin), final_norm, layers};
             new (self) Decoder(std::move(model), kernels_named(instruction_set), std::move(pool));
           },
           "instruction_set"_a, "pool"_a, "vocab"_a, "hidden"_a, "heads"_a, "kv_heads"_a, "head_dim"_a,
           "intermediate"_a, "max_positions"_a, "norm_eps"_a, "gated"_a, "gelu"_a, "embedding"_a, "lm_head"_a,
           "position_embed"_a, "cos"_a, "sin"_a, "final_norm"_a, "layers"_a)
      .def("hidden",
           [](Decoder& self, const std::vector<int32_t>& tokens, const std::vector<Span>& spans, const Cache& cache,
              uintptr_t out) {
             const nb::gil_scoped_release unlocked;
             self.hidden(tokens, spans, cache, at<float>(out));
           },
           "tokens"_a, "spans"_a, "cache"_a, "out"_a)
      .def("logits",
           [](Decoder& self, uintptr_t hidden, int rows, uintptr_t out) {
             const nb::gil_scoped_release unlocked;
             self.logits(at<float>(hidden), rows, at<float>(out));
           },
           "hidden"_a, "rows"_a, "out"_a)
      .def("greedy",
           [](Decoder& self, uintptr_t hidden, int rows) {
             std::vector<int64_t> tokens(static_cast<size_t>(std::max(rows, 0)));
             {
               const nb::gil_scoped_release unlocked;
               self.greedy(at<float>(hidden), rows, tokens.data());
             }
             return tokens;
           },
           "hidden"_a, "rows"_a);

  m.def("linear", &linear, "instruction_set"_a, "matrix"_a, "x"_a, "rows"_a, "out"_a, "pool"_a,
        nb::call_guard<nb::gil_scoped_release>());
  m.def("read_memory",
        [](uintptr_t data, size_t bytes, ThreadPool& pool) { return qspec::read_memory(at<void>(data), bytes, pool); },
        "data"_a, "bytes"_a, "pool"_a, nb::call_guard<nb::gil_scoped_release>());
  m.def("decode_rows", &decode_rows, "instruction_set"_a, "matrix"_a, "out"_a);
  m.def("apply", &apply, "instruction_set"_a, "name"_a, "x"_a, "second"_a, "third"_a, "eps"_a, "rows"_a, "size"_a,
        "out"_a);
}
