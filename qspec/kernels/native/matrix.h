// What crosses the line between the driver, which is compiled for any CPU, and the kernels, which are compiled once per
// instruction set: plain structures, no templates, no standard containers.
#pragma once
#include <cstddef>
#include <cstdint>

namespace qspec {

// Stored formats, as in qspec/quant/codecs.py.
enum class Format : int32_t {
  kFp32,           // codes: float [out, in]
  kFp16Planes,     // codes: high plane, low: low plane [out, in]; scales [out]
  kE4m3Plane,      // codes: high plane alone, worth 2^-8 of its e4m3 numbers; scales [out]
  kE4m3Row,        // codes: e4m3 [out, in]; scales [out]
  kInt8Row,        // codes: int8 [out, in]; scales [out]
  kInt8Groups,     // codes: int8 [out, in]; scales [out, groups]
  kInt8Nibbles,    // codes, low: nibbles [out, in / 2], a code is 16 * high + low; scales [out, groups]
  kNibbleTable,    // codes: nibbles [out, in / 2], each an index into table; scales [out, groups]
  kNibbleZeros,    // as kNibbleTable, less zeros [out, groups] (uint8) before the scale
  kNibbleMinima,   // as kNibbleTable, plus minima [out, groups] (float) after the scale
  kNibbleSwapped,  // as kNibbleTable, but the even-numbered input has the high nibble
};
constexpr int kFormats = 11;

enum class Activations : int32_t { kFp32, kInt8, kE4m3 };

// The weight of a linear layer, row-major [out, in]. The memory belongs to the caller.
struct Matrix {
  Format format;
  Activations activations;
  int32_t outputs, inputs;
  int32_t group;           // inputs that share a scale; inputs itself where a row has one scale
  int32_t group_shift;     // group = 2^group_shift, where there are several in a row
  float scale_factor;      // multiplies the scale of a row: 256 for e4m3 rows, which are read as fp16 numbers, else 1
  const uint8_t* codes;
  const uint8_t* low;
  const float* scales;
  const uint8_t* zeros;
  const float* minima;
  const float* bias;       // [out] or null
  float table[16];         // value of each 4-bit code, before zeros and scale
  int8_t byte_table[16];   // the same, for int8 activations

  bool nibbles() const {  // two weights in a byte
    switch (format) {
      case Format::kInt8Nibbles:
      case Format::kNibbleTable:
      case Format::kNibbleZeros:
      case Format::kNibbleMinima:
      case Format::kNibbleSwapped: return true;
      default: return false;
    }
  }
};

// Rows of activations as the kernels read them: padded with zeros to a multiple of 64 inputs; for 4-bit formats the
// even-numbered inputs of every 32 (fp32) or 64 (int8) come before the odd-numbered ones, as they come out of a byte.
struct Rows {
  const float* values;     // [rows, stride], when the activations are not int8
  const uint8_t* codes;    // [rows, stride], when they are: in the form that the instruction set multiplies
  const float* scales;     // [rows]: of the int8 codes
  int64_t stride;
};

inline int64_t padded_inputs(int64_t inputs) { return (inputs + 63) / 64 * 64; }

// A call of a linear kernel: outputs begin..end for all rows; output o of row r goes to out[r * out_stride + o - begin].
struct LinearCall {
  const Matrix* matrix;
  Rows x;
  int32_t rows, begin, end;
  float* out;
  int64_t out_stride;
  bool add;                // add to what is there (a residual connection) instead of replacing it
  float* scratch;          // kScratchOutputs * padded_inputs floats
};
constexpr int kScratchOutputs = 8;

// Keys and values of one sequence for one layer and key/value head: positions below `context` in blocks, later ones in
// the tail.
struct KeyRun {
  const float* keys;
  const float* values;
  const int32_t* block_ids;
  int64_t block_stride;    // floats between blocks
  int32_t block_size;
  int32_t context;
  const float* tail_keys;
  const float* tail_values;
};

constexpr int kChunk = 64;          // positions that are attended together; absolute: chunk c holds 64c..64c+63
constexpr int kMaxHeadDim = 512;

struct Kernels {
  const char* name;
  void (*linear)(const LinearCall&);
  // Values of one row of a weight, in order: what the codec's decode gives.
  void (*decode_row)(const Matrix&, int32_t row, float* out);
  // Bring `inputs` values into the form that `Rows` describes; values and scratch hold padded_inputs floats.
  void (*prepare_row)(const Matrix&, float* values, float* out_values, uint8_t* out_codes, float* out_scale);
  void (*rms_norm)(const float* x, const float* weight, float eps, int32_t size, float* out);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, int32_t size, float* out);
  void (*silu_mul)(float* gate, const float* up, int32_t size);  // up may be null
  void (*gelu_mul)(float* gate, const float* up, int32_t size);
  void (*rotate)(float* x, const float* cos, const float* sin, int32_t head_dim);
  // Attention of `queries` heads of one row over positions first..first+count-1 (count <= kChunk) of one chunk:
  // part[h] = {maximum, normaliser, values [head_dim]}, part_stride floats apart.
  void (*attend_chunk)(const float* q, int32_t queries, int32_t head_dim, float scale, const KeyRun&, int32_t first,
                       int32_t count, float* part, int64_t part_stride);
  // Take one chunk's part into the running one; chunks come in ascending order, the first onto {-inf, 0, zeros}.
  void (*merge_part)(float* running, const float* part, int32_t head_dim);
  // running = {maximum, normaliser, values} -> values / normaliser
  void (*finish_part)(const float* running, int32_t head_dim, float* out);
  // Lowest index of the largest value; a NaN counts as larger than anything, the first one wins.
  void (*argmax)(const float* values, int32_t size, float* best, int32_t* index);
};

}  // namespace qspec
