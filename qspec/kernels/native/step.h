// What the parts of the decoder's driver share: a step's arguments, and how things are divided among threads.
#pragma once
#include <algorithm>

#include "decoder.h"

namespace qspec {

constexpr int32_t kFewRows = 8;  // up to here every thread prepares all rows itself

struct Range {
  int32_t begin, end;
};

// The share of `thread` of `count` things, in units.
inline Range share(int32_t count, int32_t unit, int thread, int threads) {
  const int64_t units = (count + unit - 1) / unit;
  const auto at = [&](int64_t t) { return static_cast<int32_t>(std::min<int64_t>(count, units * t / threads * unit)); };
  return {at(thread), at(thread + 1)};
}

template <class T>
void grow(std::vector<T>& buffer, int64_t size) {
  if (static_cast<int64_t>(buffer.size()) < size) buffer.resize(static_cast<size_t>(size));
}

struct Decoder::Step {
  const std::vector<int32_t>& tokens;
  const std::vector<Span>& spans;
  const Cache& cache;
  int32_t rows;
  float* x;  // the residual stream
};

}  // namespace qspec
