#include "thread_pool.h"

#include <chrono>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace qspec {
namespace {

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");
#endif
}

#if defined(__linux__)
std::vector<int> usable_cpus() {
  std::vector<int> cpus;
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0)
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
      if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  return cpus;
}

// The calling thread on one CPU as long as this lives.
class Bound {
 public:
  explicit Bound(const std::vector<int>& cpus) {
    if (cpus.empty() || pthread_getaffinity_np(pthread_self(), sizeof before_, &before_) != 0) return;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpus[0], &one);
    bound_ = pthread_setaffinity_np(pthread_self(), sizeof one, &one) == 0;
  }
  ~Bound() {
    if (bound_) pthread_setaffinity_np(pthread_self(), sizeof before_, &before_);
  }

 private:
  cpu_set_t before_;
  bool bound_ = false;
};
#else
std::vector<int> usable_cpus() { return {}; }
struct Bound {
  explicit Bound(const std::vector<int>&) {}
  ~Bound() {}
};
#endif

}  // namespace

ThreadPool::ThreadPool(int threads, int spin_microseconds, bool bind)
    : threads_(threads < 1 ? 1 : threads), spin_nanoseconds_(int64_t{spin_microseconds} * 1000) {
  if (bind && threads_ > 1) {
    cpus_ = usable_cpus();
    if (static_cast<int>(cpus_.size()) < threads_) cpus_.clear();
  }
  try {
    for (int thread = 1; thread < threads_; thread++) workers_.emplace_back([this, thread] { worker(thread); });
  } catch (...) {
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  stopping_ = true;
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::await_change(std::atomic<uint32_t>& value, uint32_t old) const {
  if (value.load(std::memory_order_acquire) != old) return;
  const auto start = std::chrono::steady_clock::now();
  for (int spins = 1;; spins++) {
    relax();
    if (value.load(std::memory_order_acquire) != old) return;
    if (spins % 32 == 0 && (std::chrono::steady_clock::now() - start).count() > spin_nanoseconds_) break;
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

void ThreadPool::barrier() {
  if (threads_ == 1) return;
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(threads_)) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    phase_.notify_all();
  } else {
    await_change(phase_, phase);
  }
}

void ThreadPool::run(void (*work)(void*, int), void* context) {
  if (threads_ == 1) return work(context, 0);
  const Bound bound(cpus_);
  work_ = work, context_ = context;
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  work(context, 0);
  barrier();
}

void ThreadPool::worker(int thread) {
#if defined(__linux__)
  if (!cpus_.empty()) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpus_[static_cast<size_t>(thread)], &one);
    pthread_setaffinity_np(pthread_self(), sizeof one, &one);
  }
#endif
  for (uint32_t seen = 0;; seen++) {
    await_change(generation_, seen);
    if (stopping_) return;
    work_(context_, thread);
    barrier();
  }
}

}  // namespace qspec
