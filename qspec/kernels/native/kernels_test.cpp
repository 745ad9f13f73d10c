// The kernels without Python, for the sanitizers (make native-sanitizers) and for other processors (make native-neon):
// every format and instruction set over odd shapes, in buffers of exactly the size that they need, and whole steps on
// several threads. Results are compared with a plain loop in double, and bit for bit between row counts, threads,
// instruction sets and, by a checksum of them all, processors and compilers.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "decoder.h"
#include "instruction_sets.h"

using namespace qspec;

namespace {

int failures = 0;

void expect(bool holds, const char* what, const char* where) {
  if (holds) return;
  std::printf("FAILED: %s (%s)\n", what, where);
  failures++;
}

// Of all results' bits, in order (FNV-1a). What the test computes decides it: a change of the test changes it.
constexpr uint64_t kChecksum = 0xbdc7f7343fa481a6;
uint64_t checksum = 14695981039346656037u;

void record(const std::vector<float>& values) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
  for (size_t i = 0; i < values.size() * sizeof(float); i++) checksum = (checksum ^ bytes[i]) * 1099511628211u;
}

std::mt19937 source(1);

float uniform() { return static_cast<float>(source() >> 8) * 0x1p-23f - 1.0f; }

std::vector<float> uniforms(int64_t size) {
  std::vector<float> values(static_cast<size_t>(size));
  for (float& value : values) value = uniform();
  return values;
}

std::vector<uint8_t> bytes(int64_t size, int mask) {
  std::vector<uint8_t> values(static_cast<size_t>(size));
  for (uint8_t& value : values) value = static_cast<uint8_t>(static_cast<int>(source()) & mask);
  return values;
}

// A matrix and the memory that it points to, no byte more than the format has.
struct Weight {
  Matrix matrix{};
  std::vector<float> fp32, scales, minima, bias;
  std::vector<uint8_t> codes, low, zeros;

  Weight(Format format, Activations activations, int outputs, int inputs, int group) {
    const int64_t size = int64_t{outputs} * inputs;
    Matrix& m = matrix;
    m.format = format, m.activations = activations, m.outputs = outputs, m.inputs = inputs;
    m.group = group ? group : inputs, m.scale_factor = 1;
    while ((2 << m.group_shift) <= m.group) m.group_shift++;
    const bool is_unsigned = format == Format::kNibbleZeros || format == Format::kNibbleMinima;
    for (int code = 0; code < 16; code++) {
      m.table[code] = static_cast<float>(is_unsigned || code < 8 ? code : code - 16);
      m.byte_table[code] = static_cast<int8_t>(m.table[code]);
    }
    if (format == Format::kFp32) fp32 = uniforms(size);
    else codes = bytes(m.nibbles() ? size / 2 : size, format == Format::kE4m3Plane || format == Format::kFp16Planes ? 0xB7 : 0xFF);
    if (format == Format::kFp16Planes || format == Format::kInt8Nibbles) low = bytes(static_cast<int64_t>(codes.size()), 0x7F);
    const int64_t groups = int64_t{outputs} * (inputs / m.group);
    scales = uniforms(groups), zeros = bytes(groups, 15), minima = uniforms(groups), bias = uniforms(outputs);
    m.codes = fp32.empty() ? codes.data() : reinterpret_cast<const uint8_t*>(fp32.data());
    m.low = low.empty() ? nullptr : low.data();
    m.scales = scales.data(), m.bias = bias.data();
    m.zeros = format == Format::kNibbleZeros ? zeros.data() : nullptr;
    m.minima = format == Format::kNibbleMinima ? minima.data() : nullptr;
  }
};

std::vector<float> multiply(const Kernels& kernels, const Matrix& m, const std::vector<float>& x, int rows, int threads) {
  const int64_t stride = padded_inputs(m.inputs);
  std::vector<float> values(static_cast<size_t>(rows * stride)), row(static_cast<size_t>(stride)), scales(static_cast<size_t>(rows));
  std::vector<float> out(static_cast<size_t>(int64_t{rows} * m.outputs));
  std::vector<uint8_t> codes(static_cast<size_t>(rows * stride));
  for (int64_t r = 0; r < rows; r++) {
    std::memcpy(row.data(), x.data() + r * m.inputs, static_cast<size_t>(m.inputs) * sizeof(float));
    kernels.prepare_row(m, row.data(), values.data() + r * stride, codes.data() + r * stride, scales.data() + r);
  }
  ThreadPool pool(threads, 50, false);
  auto work = [&](int thread) {
    std::vector<float> scratch(static_cast<size_t>(stride * kScratchOutputs));
    const int begin = m.outputs * thread / threads, end = m.outputs * (thread + 1) / threads;
    kernels.linear({&m, {values.data(), codes.data(), scales.data(), stride}, rows, begin, end, out.data() + begin,
                    m.outputs, false, scratch.data()});
  };
  pool.run(work);
  return out;
}

void test_linear(const std::vector<const Kernels*>& all) {
  struct Case {
    Format format;
    int group;
    bool integer;
  };
  const Case cases[] = {
      {Format::kFp32, 0, false},       {Format::kFp16Planes, 0, false}, {Format::kE4m3Plane, 0, false},
      {Format::kInt8Row, 0, true},     {Format::kInt8Groups, 64, true}, {Format::kInt8Nibbles, 64, false},
      {Format::kNibbleTable, 32, true}, {Format::kNibbleTable, 64, true}, {Format::kNibbleZeros, 32, true},
      {Format::kInt8Groups, 32, true}, {Format::kNibbleMinima, 32, true}, {Format::kNibbleSwapped, 64, false},
  };
  for (const Case& test : cases)
    for (int integer = 0; integer <= (test.integer ? 1 : 0); integer++)
      for (int outputs : {1, 13})
        for (int inputs : {1, 33, 64, 96, 192, 319}) {
          if (test.group && inputs % test.group) continue;
          const Weight weight(test.format, integer ? Activations::kInt8 : Activations::kFp32, outputs, inputs, test.group);
          const Matrix& m = weight.matrix;
          const int rows = 17;
          const std::vector<float> x = uniforms(int64_t{rows} * inputs);
          const std::vector<float> expected = multiply(*all[0], m, x, rows, 1);
          record(expected);
          for (const Kernels* kernels : all)
            for (int count : {1, 2, 3, 4, 5, 6, 7, 13, rows}) {
              const std::vector<float> result = multiply(*kernels, m, x, count, 1 + count % 3);
              expect(!std::memcmp(result.data(), expected.data(), result.size() * sizeof(float)), "linear's bits", kernels->name);
            }
          std::vector<float> row(static_cast<size_t>(inputs));
          for (int o = 0; o < outputs; o++) {
            all[0]->decode_row(m, o, row.data());
            record(row);
            double sum = 0, size = 0;
            for (size_t k = 0; k < row.size(); k++)
              sum += double{row[k]} * x[k], size += std::fabs(double{row[k]} * x[k]) + (integer ? std::fabs(row[k]) : 0);
            const double error = std::fabs(sum + weight.bias[static_cast<size_t>(o)] - expected[static_cast<size_t>(o)]);
            expect(error <= (integer ? 4e-3 : 2e-6) * (size + 1), "linear's value", all[0]->name);
          }
        }
}

// Two layers, grouped queries, a plain or a gated MLP; verification in chunks against one pass, drafting against both.
void test_decoder(const std::vector<const Kernels*>& all, bool gated) {
  const int hidden = 40, heads = 6, kv_heads = 2, size = 12, middle = 50, vocab = 99, layers = 2, block = 16, positions = 90;
  std::vector<std::unique_ptr<Weight>> kept;
  const auto weight = [&](int outputs, int inputs) {
    kept.push_back(std::make_unique<Weight>(Format::kFp16Planes, Activations::kFp32, outputs, inputs, 0));
    for (float& scale : kept.back()->scales) scale = 0.25f;
    return kept.back()->matrix;
  };
  const std::vector<float> ones(64, 1.0f), cos = uniforms(128 * size), sin = uniforms(128 * size);
  Model model{vocab, hidden, heads, kv_heads, size, middle, 128, 1e-5f, gated, !gated, {}, {}, nullptr, nullptr, nullptr, {}, {}};
  model.embedding = model.lm_head = weight(vocab, hidden);
  model.cos = cos.data(), model.sin = sin.data();
  model.final_norm.weight = ones.data();
  for (int i = 0; i < layers; i++) {
    LayerWeights layer{};
    layer.qkv = weight((heads + 2 * kv_heads) * size, hidden), layer.attention_out = weight(hidden, heads * size);
    layer.mlp_in = weight((gated ? 2 : 1) * middle, hidden), layer.mlp_out = weight(hidden, middle);
    layer.attention_norm.weight = layer.mlp_norm.weight = ones.data();
    layer.q_norm = layer.k_norm = ones.data();
    model.layers.push_back(layer);
  }
  const std::vector<int32_t> blocks = {3, 0, 5, 2, 1, 4};
  std::vector<int32_t> tokens;
  for (int i = 0; i < positions; i++) tokens.push_back(i * 37 % vocab);
  std::vector<float> expected;
  for (const Kernels* kernels : all)
    for (int threads = 1; threads <= 3; threads++) {
      Decoder decoder(model, *kernels, std::make_shared<ThreadPool>(threads, threads == 3 ? 0 : 50, false));
      for (int chunk : {positions, 1, 7}) {
        std::vector<float> keys(static_cast<size_t>(layers * 6 * kv_heads * block * size), NAN), values = keys;
        std::vector<float> tail_keys(static_cast<size_t>(layers * 2 * kv_heads * 4 * size), NAN), tail_values = tail_keys;
        Cache cache{keys.data(), values.data(), 6 * kv_heads * block * size, kv_heads * block * size, block * size, 6, block,
                    tail_keys.data(), tail_values.data(), 2 * kv_heads * 4 * size, kv_heads * 4 * size, 4 * size, 2, 4};
        std::vector<float> result(static_cast<size_t>(positions * hidden));
        for (int start = 0; start < positions; start += chunk) {
          const int rows = std::min(chunk, positions - start);
          const std::vector<int32_t> part(tokens.begin() + start, tokens.begin() + start + rows);
          decoder.hidden(part, {{0, rows, start, std::numeric_limits<int32_t>::max(), 0, blocks}}, cache, result.data() + start * hidden);
        }
        if (expected.empty()) record(expected = result);
        expect(!std::memcmp(result.data(), expected.data(), result.size() * sizeof(float)), "the step's bits", kernels->name);
        for (int step = 0; step < 4; step++) {
          std::vector<float> drafted(hidden);
          decoder.hidden({tokens[static_cast<size_t>(70 + step)]}, {{0, 1, 70 + step, 70, 1, {3, 0, 5, 2, 1}}}, cache, drafted.data());
          expect(!std::memcmp(drafted.data(), expected.data() + (70 + step) * hidden, hidden * sizeof(float)), "the draft's bits", kernels->name);
        }
        std::vector<float> logits(static_cast<size_t>(11 * vocab));
        std::vector<int64_t> words(11);
        decoder.logits(result.data(), 11, logits.data());
        decoder.greedy(result.data(), 11, words.data());
        for (int row = 0; row < 11; row++)
          for (int word = 0; word < vocab; word++)
            expect(logits[static_cast<size_t>(row * vocab + word)] <= logits[static_cast<size_t>(row * vocab + words[static_cast<size_t>(row)])], "greedy", kernels->name);
      }
    }
}

}  // namespace

int main() {
  const std::vector<const Kernels*> all = usable_kernels();
  if (all.empty()) return std::puts("this CPU has no kernels"), 1;
  for (const Kernels* kernels : all) std::printf("%s ", kernels->name);
  std::fflush(stdout);
  test_linear(all);
  test_decoder(all, true);
  test_decoder(all, false);
  if (checksum != kChecksum) {
    std::printf("FAILED: all bits: their checksum is 0x%016llx\n", static_cast<unsigned long long>(checksum));
    failures++;
  }
  std::printf("%s\n", failures ? "FAILED" : "ok");
  return failures != 0;
}
