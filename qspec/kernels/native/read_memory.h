// Reading memory and nothing else: what a step is measured against.
#pragma once
#include <cstddef>
#include <cstdint>

#include "thread_pool.h"

namespace qspec {

// Reads `bytes` bytes at `data`, a multiple of 16, once with all threads (but for a rest of a few lines); returns a sum.
uint64_t read_memory(const void* data, size_t bytes, ThreadPool& pool);

}  // namespace qspec
