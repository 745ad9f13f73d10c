// The kernels of one instruction set, as a table. Included once by each of avx2.cpp, neon.cpp, …, after the lanes; all
// of it has internal linkage, so that the linker cannot exchange one instruction set's functions for another's.
#pragma once
#include "attention.h"
#include "integer_linear.h"

namespace {

void linear(const LinearCall& call) {
  const Matrix& m = *call.matrix;
  if (call.begin >= call.end || call.rows < 1) return;
  if (m.activations == Activations::kInt8)
    return m.nibbles() ? integer_linear<true>(call) : integer_linear<false>(call);
  switch (m.format) {
    case Format::kFp32: return linear_in<Fp32Format>(call);
    case Format::kFp16Planes: return linear_in<Fp16PlanesFormat>(call);
    case Format::kE4m3Plane:
    case Format::kE4m3Row: return linear_in<E4m3Format>(call);
    case Format::kInt8Row: return linear_in<Int8RowFormat>(call);
    case Format::kInt8Groups: return linear_in<Int8GroupsFormat>(call);
    case Format::kInt8Nibbles: return linear_in<Int8NibblesFormat>(call);
    case Format::kNibbleTable: return linear_in<NibbleFormat<Format::kNibbleTable>>(call);
    case Format::kNibbleZeros: return linear_in<NibbleFormat<Format::kNibbleZeros>>(call);
    case Format::kNibbleMinima: return linear_in<NibbleFormat<Format::kNibbleMinima>>(call);
    case Format::kNibbleSwapped: return linear_in<NibbleFormat<Format::kNibbleSwapped>>(call);
  }
}

void decode_row(const Matrix& m, int32_t row, float* out) {
  switch (m.format) {
    case Format::kFp32: return decode_row_in<Fp32Format>(m, row, out);
    case Format::kFp16Planes: return decode_row_in<Fp16PlanesFormat>(m, row, out);
    case Format::kE4m3Plane:
    case Format::kE4m3Row: return decode_row_in<E4m3Format>(m, row, out);
    case Format::kInt8Row: return decode_row_in<Int8RowFormat>(m, row, out);
    case Format::kInt8Groups: return decode_row_in<Int8GroupsFormat>(m, row, out);
    case Format::kInt8Nibbles: return decode_row_in<Int8NibblesFormat>(m, row, out);
    case Format::kNibbleTable: return decode_row_in<NibbleFormat<Format::kNibbleTable>>(m, row, out);
    case Format::kNibbleZeros: return decode_row_in<NibbleFormat<Format::kNibbleZeros>>(m, row, out);
    case Format::kNibbleMinima: return decode_row_in<NibbleFormat<Format::kNibbleMinima>>(m, row, out);
    case Format::kNibbleSwapped: return decode_row_in<NibbleFormat<Format::kNibbleSwapped>>(m, row, out);
  }
}

constexpr qspec::Kernels table_named(const char* name) {
  return {name,     linear,   decode_row, prepare_row,  rms_norm,   layer_norm,  silu_mul,
          gelu_mul, rotate,   attend_chunk, merge_part, finish_part, argmax};
}

}  // namespace
