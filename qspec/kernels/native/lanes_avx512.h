// Sixteen lanes in one AVX-512 register.
#pragma once
#include <immintrin.h>
#include <cstdint>
#include <cstring>

namespace {

struct Lanes { __m512 v; };
struct Table { __m512 v; };
struct Ints { __m512i v; };

constexpr int kMaxRows = 6;                                  // rows of one tile
constexpr int kTileOutputs[kMaxRows + 1] = {0, 8, 8, 4, 4, 4, 4};  // outputs of a tile, by its rows
constexpr int kWideRows = 6;  // rows of a tile over decoded weights
constexpr int kAttentionSlices[5] = {0, 4, 4, 4, 4};  // of 16 numbers, by the queries of a tile

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
inline Lanes zero() { return {_mm512_setzero_ps()}; }
inline Lanes load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Lanes broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline void store(float* p, Lanes a) { _mm512_storeu_ps(p, a.v); }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Lanes fnma(Lanes a, Lanes b, Lanes c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
inline Lanes add(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes sub(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Lanes mul(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Lanes div(Lanes a, Lanes b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Lanes max(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Lanes absolute(Lanes a) { return {_mm512_abs_ps(a.v)}; }
inline Lanes round_even(Lanes a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// a * 2^n for integral n in -126..127
inline Lanes times_power_of_two(Lanes a, Lanes n) {
  __m512i bits = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127)), 23);
  return {_mm512_mul_ps(a.v, _mm512_castsi512_ps(bits))};
}
// x < limit ? a : b (b where x is NaN)
inline Lanes where_less(Lanes x, Lanes limit, Lanes a, Lanes b) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, limit.v, _CMP_LT_OQ), b.v, a.v)};
}
inline bool any_nan(Lanes a) { return _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q) != 0; }

inline __m256 fold(Lanes a) { return _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1)); }
inline __m256 fold_max(Lanes a) { return _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1)); }

inline void halves(__m512i words, Lanes& a, Lanes& b) {  // 32 fp16 numbers
  a.v = _mm512_cvtph_ps(_mm512_castsi512_si256(words));
  b.v = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(words, 1));
}
inline void decode_e4m3(const uint8_t* p, Lanes& a, Lanes& b) {
  __m512i s = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  halves(_mm512_and_si512(_mm512_slli_epi16(s, 7), _mm512_set1_epi16(static_cast<short>(0xBF80))), a, b);
}
#if defined(__GFNI__) && defined(__AVX512VBMI__)
// The low plane is the low byte of the number. The high byte is sign, 0 and (h - top bit of low) >> 1, which undoes the
// rounding: products with bit matrices move bits within bytes, of which bit 7 - i of row i is the first in memory.
inline void decode_planes(const uint8_t* high, const uint8_t* low, Lanes& a, Lanes& b) {
  const __m256i top_bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8000000000000000));     // 7 -> 0
  const __m256i sign_and_half = _mm256_set1_epi64x(static_cast<int64_t>(0x0204081020400080));  // 7, -, 6, 5, 4, 3, 2, 1
  alignas(64) static constexpr uint8_t kInterleave[64] = {
      0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
      11, 43, 12, 44, 13, 45, 14, 46, 15, 47, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53,
      22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
  __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(high));
  __m256i l = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(low));
  __m256i kept = _mm256_sub_epi8(h, _mm256_gf2p8affine_epi64_epi8(l, top_bit, 0));
  __m512i bytes = _mm512_inserti64x4(_mm512_castsi256_si512(l), _mm256_gf2p8affine_epi64_epi8(kept, sign_and_half, 0), 1);
  halves(_mm512_permutexvar_epi8(_mm512_load_si512(kInterleave), bytes), a, b);
}
#else
inline void decode_planes(const uint8_t* high, const uint8_t* low, Lanes& a, Lanes& b) {
  __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(high));
  __m256i l = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(low));
  __m256i rounded = _mm256_and_si256(_mm256_xor_si256(h, _mm256_srli_epi16(l, 7)), _mm256_set1_epi8(1));
  __m512i kept = _mm512_slli_epi16(_mm512_cvtepi8_epi16(_mm256_sub_epi8(h, rounded)), 7);
  __m512i rest = _mm512_cvtepu8_epi16(_mm256_and_si256(l, _mm256_set1_epi8(0x7F)));
  // (kept & 0xBF80) | rest
  halves(_mm512_ternarylogic_epi32(kept, _mm512_set1_epi16(static_cast<short>(0xBF80)), rest, 0xEA), a, b);
}
#endif
inline Lanes from_int8(__m128i bytes) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))}; }
inline void decode_int8(const uint8_t* p, Lanes& a, Lanes& b) {
  a = from_int8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  b = from_int8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16)));
}
inline Table table_of(Lanes numbers) { return {numbers.v}; }
inline void decode_nibbles(const uint8_t* p, Table t, Lanes& low, Lanes& high) {
  __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  low.v = _mm512_permutexvar_ps(bytes, t.v);  // reads the low four bits of an index
  high.v = _mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), t.v);
}

// Integer products: codes of activations are stored plus 128 (flip 0x80) where vpdpbusd multiplies them.
#ifdef __AVX512VNNI__
constexpr uint8_t kFlip = 0x80;
#else
constexpr uint8_t kFlip = 0;
#endif
using ByteTable = __m128i;
struct Bytes { __m512i v; };
inline Ints zero_ints() { return {_mm512_setzero_si512()}; }
inline Lanes to_float(Ints a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline int32_t total(Ints a) { return _mm512_reduce_add_epi32(a.v); }
inline Bytes load_bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
// 64 nibbles, the even-numbered ones first, as the signed bytes of a table.
inline Bytes load_nibbles(const uint8_t* p, ByteTable table) {
  __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), mask = _mm256_set1_epi8(0x0F);
  __m256i even = _mm256_and_si256(packed, mask), odd = _mm256_and_si256(_mm256_srli_epi16(packed, 4), mask);
  __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(even), odd, 1);
  return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), both)};
}
inline Bytes subtract(Bytes a, const int8_t* p) { return {_mm512_sub_epi8(a.v, _mm512_loadu_si512(p))}; }
#ifdef __AVX512VNNI__
inline Ints correct(Ints sum, Bytes w) { return {_mm512_dpbusd_epi32(sum.v, _mm512_set1_epi8(static_cast<char>(0x80)), w.v)}; }
inline Ints dot(Ints sum, Bytes x, Bytes w) { return {_mm512_dpbusd_epi32(sum.v, x.v, w.v)}; }
inline Ints subtract(Ints a, Ints b) { return {_mm512_sub_epi32(a.v, b.v)}; }
#else
inline Ints correct(Ints sum, Bytes) { return sum; }
inline Ints subtract(Ints a, Ints) { return a; }
inline Ints dot(Ints sum, Bytes x, Bytes w) {  // lane j: inputs 4j..4j+3
  auto low = [](__m512i v) { return _mm512_srai_epi16(_mm512_slli_epi16(v, 8), 8); };
  auto high = [](__m512i v) { return _mm512_srai_epi16(v, 8); };
  __m512i products = _mm512_add_epi32(_mm512_madd_epi16(low(x.v), low(w.v)), _mm512_madd_epi16(high(x.v), high(w.v)));
  return {_mm512_add_epi32(sum.v, products)};
}
#endif

}  // namespace
