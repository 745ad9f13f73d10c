// Reading stored weights: 32 of one row at a time, as two sets of sixteen lanes, exactly the numbers that the codec's
// decode gives (rows with one scale: without that scale, which multiplies the finished sum).
#pragma once
#include "matrix.h"

namespace {

using qspec::Format;
using qspec::Matrix;

// Each format: kBits per weight of one plane, whether the scale of a row is left to the end, and a Row to read from.
// Row::step says which weights come now; group() is called when k enters a group.
struct Fp32Format {
  static constexpr int kBits = 32;
  static constexpr bool kPlanes = false, kRowScale = false, kGroups = false;
  struct Row {
    const uint8_t* p;
    Row() = default;
    Row(const Matrix& m, int64_t row) : p(m.codes + row * m.inputs * 4) {}
    void group(const Matrix&, int) {}
    void decode(int64_t k, Lanes& a, Lanes& b) const {
      const float* w = reinterpret_cast<const float*>(p) + k;
      a = load(w), b = load(w + 16);
    }
  };
};

struct Fp16PlanesFormat {
  static constexpr int kBits = 8;
  static constexpr bool kPlanes = true, kRowScale = true, kGroups = false;
  struct Row {
    const uint8_t *p, *q;
    Row() = default;
    Row(const Matrix& m, int64_t row) : p(m.codes + row * m.inputs), q(m.low + row * m.inputs) {}
    void group(const Matrix&, int) {}
    void decode(int64_t k, Lanes& a, Lanes& b) const { decode_planes(p + k, q + k, a, b); }
  };
};

struct E4m3Format {
  static constexpr int kBits = 8;
  static constexpr bool kPlanes = false, kRowScale = true, kGroups = false;
  struct Row {
    const uint8_t* p;
    Row() = default;
    Row(const Matrix& m, int64_t row) : p(m.codes + row * m.inputs) {}
    void group(const Matrix&, int) {}
    void decode(int64_t k, Lanes& a, Lanes& b) const { decode_e4m3(p + k, a, b); }
  };
};

struct Int8RowFormat {
  static constexpr int kBits = 8;
  static constexpr bool kPlanes = false, kRowScale = true, kGroups = false;
  struct Row {
    const uint8_t* p;
    Row() = default;
    Row(const Matrix& m, int64_t row) : p(m.codes + row * m.inputs) {}
    void group(const Matrix&, int) {}
    void decode(int64_t k, Lanes& a, Lanes& b) const { decode_int8(p + k, a, b); }
  };
};

struct Int8GroupsFormat {
  static constexpr int kBits = 8;
  static constexpr bool kPlanes = false, kRowScale = false, kGroups = true;
  struct Row {
    const uint8_t* p;
    const float* scales;
    Lanes scale;
    Row() = default;
    Row(const Matrix& m, int64_t row)
        : p(m.codes + row * m.inputs), scales(m.scales + row * (m.inputs / m.group)), scale(zero()) {}
    void group(const Matrix&, int g) { scale = broadcast(scales[g]); }
    void decode(int64_t k, Lanes& a, Lanes& b) const {
      decode_int8(p + k, a, b);
      a = mul(a, scale), b = mul(b, scale);
    }
  };
};

struct Int8NibblesFormat {
  static constexpr int kBits = 4;
  static constexpr bool kPlanes = true, kRowScale = false, kGroups = true;
  struct Row {
    const uint8_t *p, *q;
    const float* scales;
    Lanes scale;
    Row() = default;
    Row(const Matrix& m, int64_t row)
        : p(m.codes + row * (m.inputs / 2)), q(m.low + row * (m.inputs / 2)),
          scales(m.scales + row * (m.inputs / m.group)), scale(zero()) {}
    void group(const Matrix&, int g) { scale = broadcast(scales[g]); }
    void decode(int64_t k, Lanes& a, Lanes& b) const {
      decode_nibble_pairs(p + k / 2, q + k / 2, a, b);
      a = mul(a, scale), b = mul(b, scale);
    }
  };
};

// Nibbles through a table of the sixteen values that they have in their group: one look-up then gives the weight.
template <Format kFormat>
struct NibbleFormat {
  static constexpr int kBits = 4;
  static constexpr bool kPlanes = false, kRowScale = false, kGroups = true;
  struct Row {
    const uint8_t *p, *zeros;
    const float *scales, *minima;
    Table table;
    Row() = default;
    Row(const Matrix& m, int64_t row) : p(m.codes + row * (m.inputs / 2)), table(table_of(zero())) {
      const int64_t first = row * (m.inputs / m.group);
      scales = m.scales + first;
      zeros = kFormat == Format::kNibbleZeros ? m.zeros + first : nullptr;
      minima = kFormat == Format::kNibbleMinima ? m.minima + first : nullptr;
    }
    void group(const Matrix& m, int g) {
      Lanes values = load(m.table);
      if constexpr (kFormat == Format::kNibbleZeros) values = sub(values, broadcast(static_cast<float>(zeros[g])));
      values = mul(values, broadcast(scales[g]));
      if constexpr (kFormat == Format::kNibbleMinima) values = add(values, broadcast(minima[g]));
      table = table_of(values);
    }
    void decode(int64_t k, Lanes& a, Lanes& b) const {
      if constexpr (kFormat == Format::kNibbleSwapped) decode_nibbles(p + k / 2, table, b, a);
      else decode_nibbles(p + k / 2, table, a, b);
    }
  };
};

// The 32 weights from k on of a row whose last ones are missing, as if zeros followed.
template <class F>
inline void decode_tail(const Matrix& m, const typename F::Row& row, int64_t k, Lanes& a, Lanes& b) {
  alignas(64) uint8_t first[128] = {}, second[128] = {};
  const size_t bytes = static_cast<size_t>(m.inputs - k) * F::kBits / 8;
  typename F::Row tail = row;
  std::memcpy(first, row.p + k * F::kBits / 8, bytes);
  tail.p = first;
  if constexpr (F::kPlanes) {
    std::memcpy(second, row.q + k * F::kBits / 8, bytes);
    tail.q = second;
  }
  tail.decode(0, a, b);
}

}  // namespace
