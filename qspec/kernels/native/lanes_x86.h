// What AVX2 and AVX-512 share. The one tree in which sixteen lanes become a number: lane i + lane i+8, then i + i+4, then neighbours, then the two.
#pragma once

namespace {

inline __m128 quarter(__m256 a) { return _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1)); }
inline float sum(Lanes a) {
  __m128 s = quarter(fold(a));
  s = _mm_hadd_ps(s, s);
  return _mm_cvtss_f32(_mm_hadd_ps(s, s));
}
inline float largest(Lanes a) {
  __m256 m = fold_max(a);
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
}
// Codes 16 * high + low of 32 inputs, from both nibble planes.
inline void decode_nibble_pairs(const uint8_t* high, const uint8_t* low, Lanes& even, Lanes& odd) {
  const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(high));
  const __m128i l = _mm_loadu_si128(reinterpret_cast<const __m128i*>(low));
  const __m128i nibble = _mm_set1_epi8(0x0F), top = _mm_set1_epi8(static_cast<char>(0xF0)), eight = _mm_set1_epi8(8);
  auto extended = [&](__m128i n) { return _mm_sub_epi8(_mm_xor_si128(_mm_and_si128(n, nibble), eight), eight); };
  even = from_int8(_mm_add_epi8(_mm_and_si128(_mm_slli_epi16(h, 4), top), extended(l)));
  odd = from_int8(_mm_add_epi8(_mm_and_si128(h, top), extended(_mm_srli_epi16(l, 4))));
}
inline ByteTable load_byte_table(const int8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }

// Four sums at once, in the same tree.
inline void sum4(const Lanes& a, const Lanes& b, const Lanes& c, const Lanes& d, float* out) {
  __m256 fa = fold(a), fb = fold(b), fc = fold(c), fd = fold(d);
  __m256 ab = _mm256_add_ps(_mm256_permute2f128_ps(fa, fb, 0x20), _mm256_permute2f128_ps(fa, fb, 0x31));
  __m256 cd = _mm256_add_ps(_mm256_permute2f128_ps(fc, fd, 0x20), _mm256_permute2f128_ps(fc, fd, 0x31));
  __m256 h = _mm256_hadd_ps(ab, cd);
  h = _mm256_hadd_ps(h, h);
  _mm_storeu_ps(out, _mm_unpacklo_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1)));
}

}  // namespace
