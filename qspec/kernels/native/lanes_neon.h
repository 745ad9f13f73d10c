// Sixteen lanes in four NEON registers, in the order and the tree of lanes_x86.h. AArch64's baseline has all that this
// needs: fused multiply-add, conversion of fp16, rounding to even.
#pragma once
#include <arm_neon.h>
#include <cstdint>
#include <cstring>

namespace {

struct Lanes { float32x4_t a, b, c, d; };
struct Table { uint8x16_t planes[4]; };  // byte 0, 1, 2, 3 of each of sixteen numbers
struct Ints { int32x4_t a, b, c, d; };

constexpr int kMaxRows = 4;
constexpr int kTileOutputs[kMaxRows + 1] = {0, 4, 2, 1, 1};
constexpr int kWideRows = 4;  // rows of a tile over decoded weights
constexpr int kAttentionSlices[5] = {0, 4, 2, 1, 1};  // of 16 numbers, by the queries of a tile

template <class F>
inline Lanes each(F f, Lanes x) { return {f(x.a), f(x.b), f(x.c), f(x.d)}; }
template <class F>
inline Lanes each(F f, Lanes x, Lanes y) { return {f(x.a, y.a), f(x.b, y.b), f(x.c, y.c), f(x.d, y.d)}; }

inline void prefetch(const void* p) { __builtin_prefetch(p); }
inline Lanes broadcast(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x), vdupq_n_f32(x), vdupq_n_f32(x)}; }
inline Lanes zero() { return broadcast(0.0f); }
inline Lanes load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}; }
inline void store(float* p, Lanes x) {
  vst1q_f32(p, x.a), vst1q_f32(p + 4, x.b), vst1q_f32(p + 8, x.c), vst1q_f32(p + 12, x.d);
}
inline Lanes fma(Lanes x, Lanes y, Lanes z) {
  return {vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b), vfmaq_f32(z.c, x.c, y.c), vfmaq_f32(z.d, x.d, y.d)};
}
inline Lanes fnma(Lanes x, Lanes y, Lanes z) {
  return {vfmsq_f32(z.a, x.a, y.a), vfmsq_f32(z.b, x.b, y.b), vfmsq_f32(z.c, x.c, y.c), vfmsq_f32(z.d, x.d, y.d)};
}
inline Lanes add(Lanes x, Lanes y) { return each([](auto p, auto q) { return vaddq_f32(p, q); }, x, y); }
inline Lanes sub(Lanes x, Lanes y) { return each([](auto p, auto q) { return vsubq_f32(p, q); }, x, y); }
inline Lanes mul(Lanes x, Lanes y) { return each([](auto p, auto q) { return vmulq_f32(p, q); }, x, y); }
inline Lanes div(Lanes x, Lanes y) { return each([](auto p, auto q) { return vdivq_f32(p, q); }, x, y); }
// The second where they are equal or one is NaN, as x86 has it.
inline float32x4_t max(float32x4_t p, float32x4_t q) { return vbslq_f32(vcgtq_f32(p, q), p, q); }
inline Lanes max(Lanes x, Lanes y) { return each([](auto p, auto q) { return max(p, q); }, x, y); }
inline Lanes absolute(Lanes x) { return each([](auto p) { return vabsq_f32(p); }, x); }
inline Lanes round_even(Lanes x) { return each([](auto p) { return vrndnq_f32(p); }, x); }
inline Lanes times_power_of_two(Lanes x, Lanes n) {
  return each([](auto p, auto e) {
    const int32x4_t bits = vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(e), vdupq_n_s32(127)), 23);
    return vmulq_f32(p, vreinterpretq_f32_s32(bits));
  }, x, n);
}
inline Lanes where_less(Lanes x, Lanes limit, Lanes y, Lanes z) {
  return {vbslq_f32(vcltq_f32(x.a, limit.a), y.a, z.a), vbslq_f32(vcltq_f32(x.b, limit.b), y.b, z.b),
          vbslq_f32(vcltq_f32(x.c, limit.c), y.c, z.c), vbslq_f32(vcltq_f32(x.d, limit.d), y.d, z.d)};
}
inline bool any_nan(Lanes x) {
  const uint32x4_t low = vandq_u32(vceqq_f32(x.a, x.a), vceqq_f32(x.b, x.b));
  const uint32x4_t high = vandq_u32(vceqq_f32(x.c, x.c), vceqq_f32(x.d, x.d));
  return vminvq_u32(vandq_u32(low, high)) == 0;
}

inline float32x4_t quarter(Lanes x) { return vaddq_f32(vaddq_f32(x.a, x.c), vaddq_f32(x.b, x.d)); }
inline float sum(Lanes x) {
  const float32x4_t s = quarter(x), pairs = vpaddq_f32(s, s);
  return vgetq_lane_f32(vpaddq_f32(pairs, pairs), 0);
}
inline void sum4(const Lanes& x, const Lanes& y, const Lanes& z, const Lanes& w, float* out) {
  vst1q_f32(out, vpaddq_f32(vpaddq_f32(quarter(x), quarter(y)), vpaddq_f32(quarter(z), quarter(w))));
}
inline float largest(Lanes x) {
  const float32x4_t s = max(max(x.a, x.c), max(x.b, x.d)), pairs = max(s, vextq_f32(s, s, 2));
  return vgetq_lane_f32(max(pairs, vextq_f32(pairs, pairs, 1)), 0);
}

inline Lanes halves(uint16x8_t low, uint16x8_t high) {  // 16 fp16 numbers
  const float16x8_t p = vreinterpretq_f16_u16(low), q = vreinterpretq_f16_u16(high);
  return {vcvt_f32_f16(vget_low_f16(p)), vcvt_high_f32_f16(p), vcvt_f32_f16(vget_low_f16(q)), vcvt_high_f32_f16(q)};
}
inline uint16x8_t widen_e4m3(int8x8_t bytes) {  // sign, exponent and upper mantissa of fp16 numbers
  return vandq_u16(vreinterpretq_u16_s16(vshll_n_s8(bytes, 7)), vdupq_n_u16(0xBF80));
}
inline Lanes from_e4m3(int8x16_t bytes) {
  return halves(widen_e4m3(vget_low_s8(bytes)), widen_e4m3(vget_high_s8(bytes)));
}
inline int8x16_t load_signed(const uint8_t* p) { return vreinterpretq_s8_u8(vld1q_u8(p)); }
inline void decode_e4m3(const uint8_t* p, Lanes& x, Lanes& y) {
  x = from_e4m3(load_signed(p)), y = from_e4m3(load_signed(p + 16));
}
inline Lanes from_planes(uint8x16_t high, uint8x16_t low) {
  const uint8x16_t rounded = vandq_u8(veorq_u8(high, vshrq_n_u8(low, 7)), vdupq_n_u8(1));
  const int8x16_t kept = vreinterpretq_s8_u8(vsubq_u8(high, rounded));
  const uint8x16_t rest = vandq_u8(low, vdupq_n_u8(0x7F));
  return halves(vorrq_u16(widen_e4m3(vget_low_s8(kept)), vmovl_u8(vget_low_u8(rest))),
                vorrq_u16(widen_e4m3(vget_high_s8(kept)), vmovl_high_u8(rest)));
}
inline void decode_planes(const uint8_t* high, const uint8_t* low, Lanes& x, Lanes& y) {
  x = from_planes(vld1q_u8(high), vld1q_u8(low)), y = from_planes(vld1q_u8(high + 16), vld1q_u8(low + 16));
}
inline Lanes from_int8(int8x16_t bytes) {
  const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_high_s8(bytes);
  return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_high_s16(low)),
          vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_high_s16(high))};
}
inline void decode_int8(const uint8_t* p, Lanes& x, Lanes& y) {
  x = from_int8(load_signed(p)), y = from_int8(load_signed(p + 16));
}
// Codes 16 * high + low of 32 inputs, from both nibble planes.
inline void decode_nibble_pairs(const uint8_t* high, const uint8_t* low, Lanes& even, Lanes& odd) {
  const uint8x16_t h = vld1q_u8(high), l = vld1q_u8(low), eight = vdupq_n_u8(8);
  auto code = [&](uint8x16_t top, uint8x16_t n) {
    return from_int8(vreinterpretq_s8_u8(vaddq_u8(top, vsubq_u8(veorq_u8(n, eight), eight))));
  };
  even = code(vshlq_n_u8(h, 4), vandq_u8(l, vdupq_n_u8(0x0F)));
  odd = code(vandq_u8(h, vdupq_n_u8(0xF0)), vshrq_n_u8(l, 4));
}
inline Table table_of(Lanes numbers) {
  const uint8x16_t a = vreinterpretq_u8_f32(numbers.a), b = vreinterpretq_u8_f32(numbers.b);
  const uint8x16_t c = vreinterpretq_u8_f32(numbers.c), d = vreinterpretq_u8_f32(numbers.d);
  const uint8x16_t even_low = vuzp1q_u8(a, b), even_high = vuzp1q_u8(c, d);
  const uint8x16_t odd_low = vuzp2q_u8(a, b), odd_high = vuzp2q_u8(c, d);
  return {{vuzp1q_u8(even_low, even_high), vuzp1q_u8(odd_low, odd_high), vuzp2q_u8(even_low, even_high),
           vuzp2q_u8(odd_low, odd_high)}};
}
inline Lanes look_up(const Table& t, uint8x16_t index) {
  const uint8x16_t p = vqtbl1q_u8(t.planes[0], index), q = vqtbl1q_u8(t.planes[1], index);
  const uint8x16_t r = vqtbl1q_u8(t.planes[2], index), s = vqtbl1q_u8(t.planes[3], index);
  const uint16x8_t low = vreinterpretq_u16_u8(vzip1q_u8(p, q)), next_low = vreinterpretq_u16_u8(vzip2q_u8(p, q));
  const uint16x8_t high = vreinterpretq_u16_u8(vzip1q_u8(r, s)), next_high = vreinterpretq_u16_u8(vzip2q_u8(r, s));
  return {vreinterpretq_f32_u16(vzip1q_u16(low, high)), vreinterpretq_f32_u16(vzip2q_u16(low, high)),
          vreinterpretq_f32_u16(vzip1q_u16(next_low, next_high)), vreinterpretq_f32_u16(vzip2q_u16(next_low, next_high))};
}
inline void decode_nibbles(const uint8_t* p, const Table& t, Lanes& low, Lanes& high) {
  const uint8x16_t bytes = vld1q_u8(p);
  low = look_up(t, vandq_u8(bytes, vdupq_n_u8(0x0F))), high = look_up(t, vshrq_n_u8(bytes, 4));
}

// Integer products, exact: two of them fit into 16 bits, because activations' codes are -127..127.
constexpr uint8_t kFlip = 0;
using ByteTable = int8x16_t;
struct Bytes { int8x16_t a, b, c, d; };
inline ByteTable load_byte_table(const int8_t* p) { return vld1q_s8(p); }
inline Ints zero_ints() { return {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)}; }
inline Lanes to_float(Ints x) {
  return {vcvtq_f32_s32(x.a), vcvtq_f32_s32(x.b), vcvtq_f32_s32(x.c), vcvtq_f32_s32(x.d)};
}
inline int32_t total(Ints x) { return vaddvq_s32(vaddq_s32(vaddq_s32(x.a, x.b), vaddq_s32(x.c, x.d))); }
inline Bytes load_bytes(const uint8_t* p) {
  return {load_signed(p), load_signed(p + 16), load_signed(p + 32), load_signed(p + 48)};
}
inline Bytes load_nibbles(const uint8_t* p, ByteTable table) {
  const uint8x16_t first = vld1q_u8(p), second = vld1q_u8(p + 16), mask = vdupq_n_u8(0x0F);
  return {vqtbl1q_s8(table, vandq_u8(first, mask)), vqtbl1q_s8(table, vandq_u8(second, mask)),
          vqtbl1q_s8(table, vshrq_n_u8(first, 4)), vqtbl1q_s8(table, vshrq_n_u8(second, 4))};
}
inline Bytes subtract(Bytes x, const int8_t* p) {
  return {vsubq_s8(x.a, vld1q_s8(p)), vsubq_s8(x.b, vld1q_s8(p + 16)), vsubq_s8(x.c, vld1q_s8(p + 32)),
          vsubq_s8(x.d, vld1q_s8(p + 48))};
}
inline Ints correct(Ints sum, Bytes) { return sum; }
inline Ints subtract(Ints x, Ints) { return x; }
inline int32x4_t dot_quads(int32x4_t sum, int8x16_t x, int8x16_t w) {  // lane j: inputs 4j..4j+3
#ifdef __ARM_FEATURE_DOTPROD
  return vdotq_s32(sum, x, w);
#else
  const int16x8_t low = vmull_s8(vget_low_s8(x), vget_low_s8(w)), high = vmull_high_s8(x, w);
  return vpadalq_s16(sum, vpaddq_s16(low, high));
#endif
}
inline Ints dot(Ints sum, Bytes x, Bytes w) {
  return {dot_quads(sum.a, x.a, w.a), dot_quads(sum.b, x.b, w.b), dot_quads(sum.c, x.c, w.c),
          dot_quads(sum.d, x.d, w.d)};
}

}  // namespace
