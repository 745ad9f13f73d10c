#include "read_memory.h"

#include <vector>

namespace qspec {
namespace {

using Pair = uint64_t __attribute__((vector_size(16)));  // a register of every processor
struct Line {
  Pair pairs[4];
};
constexpr size_t kStreams = 2;  // of a thread, side by side: that keeps more of the memory busy than one
constexpr size_t kAhead = 1024 / sizeof(Line);

// Sums of two streams of so many lines.
uint64_t read_streams(const Line* first, size_t lines) {
  const Line* second = first + lines;
  Pair a0{}, a1{}, a2{}, a3{}, b0{}, b1{}, b2{}, b3{};
  for (size_t i = 0; i < lines; i++) {
    __builtin_prefetch(first + i + kAhead);
    __builtin_prefetch(second + i + kAhead);
    a0 += first[i].pairs[0], a1 += first[i].pairs[1], a2 += first[i].pairs[2], a3 += first[i].pairs[3];
    b0 += second[i].pairs[0], b1 += second[i].pairs[1], b2 += second[i].pairs[2], b3 += second[i].pairs[3];
  }
  const Pair sum = ((a0 + a1) + (a2 + a3)) + ((b0 + b1) + (b2 + b3));
  return sum[0] + sum[1];
}

}  // namespace

uint64_t read_memory(const void* data, size_t bytes, ThreadPool& pool) {
  const size_t threads = static_cast<size_t>(pool.threads());
  const size_t lines = bytes / sizeof(Line) / (threads * kStreams);  // of a stream
  std::vector<uint64_t> sums(threads);
  auto work = [&](int thread) {
    const size_t index = static_cast<size_t>(thread);
    sums[index] = read_streams(static_cast<const Line*>(data) + index * kStreams * lines, lines);
  };
  pool.run(work);
  uint64_t total = 0;
  for (uint64_t sum : sums) total += sum;
  return total;
}

}  // namespace qspec
