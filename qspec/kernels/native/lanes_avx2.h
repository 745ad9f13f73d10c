// Sixteen lanes in two AVX2 registers.
#pragma once
#include <immintrin.h>
#include <cstdint>
#include <cstring>

namespace {

struct Lanes { __m256 lo, hi; };
struct Table { __m256 lo, hi; };
struct Ints { __m256i lo, hi; };

constexpr int kMaxRows = 4;
constexpr int kTileOutputs[kMaxRows + 1] = {0, 4, 2, 2, 1};
constexpr int kWideRows = 3;  // rows of a tile over decoded weights
constexpr int kAttentionSlices[5] = {0, 4, 2, 2, 1};  // of 16 numbers, by the queries of a tile

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
inline Lanes zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Lanes load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline Lanes broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline void store(float* p, Lanes a) { _mm256_storeu_ps(p, a.lo), _mm256_storeu_ps(p + 8, a.hi); }
inline Lanes fma(Lanes a, Lanes b, Lanes c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline Lanes fnma(Lanes a, Lanes b, Lanes c) {
  return {_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi)};
}
inline Lanes add(Lanes a, Lanes b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline Lanes sub(Lanes a, Lanes b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline Lanes mul(Lanes a, Lanes b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline Lanes div(Lanes a, Lanes b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline Lanes max(Lanes a, Lanes b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline Lanes absolute(Lanes a) {
  __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF));
  return {_mm256_and_ps(a.lo, mask), _mm256_and_ps(a.hi, mask)};
}
inline Lanes round_even(Lanes a) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.lo, mode), _mm256_round_ps(a.hi, mode)};
}
inline Lanes times_power_of_two(Lanes a, Lanes n) {
  auto one = [](__m256 x, __m256 e) {
    __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(e), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(x, _mm256_castsi256_ps(bits));
  };
  return {one(a.lo, n.lo), one(a.hi, n.hi)};
}
inline Lanes where_less(Lanes x, Lanes limit, Lanes a, Lanes b) {
  return {_mm256_blendv_ps(b.lo, a.lo, _mm256_cmp_ps(x.lo, limit.lo, _CMP_LT_OQ)),
          _mm256_blendv_ps(b.hi, a.hi, _mm256_cmp_ps(x.hi, limit.hi, _CMP_LT_OQ))};
}
inline bool any_nan(Lanes a) { return _mm256_movemask_ps(_mm256_cmp_ps(a.lo, a.lo, _CMP_UNORD_Q)) |
                                      _mm256_movemask_ps(_mm256_cmp_ps(a.hi, a.hi, _CMP_UNORD_Q)); }

inline __m256 fold(Lanes a) { return _mm256_add_ps(a.lo, a.hi); }
inline __m256 fold_max(Lanes a) { return _mm256_max_ps(a.lo, a.hi); }

inline Lanes halves(__m256i words) {  // 16 fp16 numbers
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(words)), _mm256_cvtph_ps(_mm256_extracti128_si256(words, 1))};
}
inline Lanes from_e4m3(__m128i bytes) {
  __m256i s = _mm256_slli_epi16(_mm256_cvtepi8_epi16(bytes), 7);
  return halves(_mm256_and_si256(s, _mm256_set1_epi16(static_cast<short>(0xBF80))));
}
inline void decode_e4m3(const uint8_t* p, Lanes& a, Lanes& b) {
  a = from_e4m3(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  b = from_e4m3(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16)));
}
inline void decode_planes(const uint8_t* high, const uint8_t* low, Lanes& a, Lanes& b) {
  __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(high));
  __m256i l = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(low));
  __m256i rounded = _mm256_and_si256(_mm256_xor_si256(h, _mm256_srli_epi16(l, 7)), _mm256_set1_epi8(1));
  __m256i kept = _mm256_sub_epi8(h, rounded), rest = _mm256_and_si256(l, _mm256_set1_epi8(0x7F));
  auto word = [](__m128i k, __m128i r) {
    __m256i s = _mm256_slli_epi16(_mm256_cvtepi8_epi16(k), 7);
    s = _mm256_and_si256(s, _mm256_set1_epi16(static_cast<short>(0xBF80)));
    return _mm256_or_si256(s, _mm256_cvtepu8_epi16(r));
  };
  a = halves(word(_mm256_castsi256_si128(kept), _mm256_castsi256_si128(rest)));
  b = halves(word(_mm256_extracti128_si256(kept, 1), _mm256_extracti128_si256(rest, 1)));
}
inline Lanes from_int8(__m128i bytes) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(bytes, bytes)))};
}
inline void decode_int8(const uint8_t* p, Lanes& a, Lanes& b) {
  a = from_int8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  b = from_int8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16)));
}
inline Table table_of(Lanes numbers) { return {numbers.lo, numbers.hi}; }
inline __m256 look_up(Table t, __m256i index) {  // by the low four bits of an index
  __m256 low = _mm256_permutevar8x32_ps(t.lo, index), high = _mm256_permutevar8x32_ps(t.hi, index);
  return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
}
inline void decode_nibbles(const uint8_t* p, Table t, Lanes& low, Lanes& high) {
  __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  __m256i lo = _mm256_cvtepu8_epi32(bytes), hi = _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(bytes, bytes));
  low = {look_up(t, lo), look_up(t, hi)};
  high = {look_up(t, _mm256_srli_epi32(lo, 4)), look_up(t, _mm256_srli_epi32(hi, 4))};
}

// Integer products, exact: both sides widened to 16 bits (vpmaddubsw would saturate).
constexpr uint8_t kFlip = 0;
using ByteTable = __m128i;
struct Bytes { __m256i lo, hi; };
inline Ints zero_ints() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Lanes to_float(Ints a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
inline int32_t total(Ints a) {
  __m256i s = _mm256_add_epi32(a.lo, a.hi);
  __m128i t = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
  t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(t, _mm_shuffle_epi32(t, 0xB1)));
}
inline Bytes load_bytes(const uint8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
inline Bytes load_nibbles(const uint8_t* p, ByteTable table) {
  __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), mask = _mm256_set1_epi8(0x0F);
  __m256i even = _mm256_and_si256(packed, mask), odd = _mm256_and_si256(_mm256_srli_epi16(packed, 4), mask);
  __m256i values = _mm256_broadcastsi128_si256(table);
  return {_mm256_shuffle_epi8(values, even), _mm256_shuffle_epi8(values, odd)};
}
inline Bytes subtract(Bytes a, const int8_t* p) {
  Bytes b = load_bytes(reinterpret_cast<const uint8_t*>(p));
  return {_mm256_sub_epi8(a.lo, b.lo), _mm256_sub_epi8(a.hi, b.hi)};
}
inline Ints correct(Ints sum, Bytes) { return sum; }
inline Ints subtract(Ints a, Ints) { return a; }
inline __m256i dot_quads(__m256i sum, __m256i x, __m256i w) {  // lane j: inputs 4j..4j+3
  auto low = [](__m256i v) { return _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8); };
  auto high = [](__m256i v) { return _mm256_srai_epi16(v, 8); };
  __m256i products = _mm256_add_epi32(_mm256_madd_epi16(low(x), low(w)), _mm256_madd_epi16(high(x), high(w)));
  return _mm256_add_epi32(sum, products);
}
inline Ints dot(Ints sum, Bytes x, Bytes w) { return {dot_quads(sum.lo, x.lo, w.lo), dot_quads(sum.hi, x.hi, w.hi)}; }

}  // namespace
