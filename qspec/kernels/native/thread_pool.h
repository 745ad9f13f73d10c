// Threads that work on one decoder step together.
//
// A step has about 150 barriers a few microseconds apart, so threads spin at them; but drafter and verifier take turns
// on the same cores, so nobody spins for long: after a bounded time a thread sleeps in the kernel. An OpenMP runtime
// offers that only through the environment of the whole process, where torch's own library reads it as well.
#pragma once
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace qspec {

class ThreadPool {
 public:
  // `threads` counts the calling one. With `bind` thread i runs on the i-th CPU that the process may use; the caller is
  // bound for the length of a call only. Throws std::system_error where the system gives no more threads.
  ThreadPool(int threads, int spin_microseconds, bool bind);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // work(context, thread) on every thread; returns when all are done. One call at a time.
  void run(void (*work)(void*, int), void* context);

  template <class Function>
  void run(Function& function) {
    run([](void* context, int thread) { (*static_cast<Function*>(context))(thread); }, &function);
  }

  // All threads of a run wait here for each other.
  void barrier();

 private:
  void worker(int thread);
  void await_change(std::atomic<uint32_t>& value, uint32_t old) const;
  void stop();

  const int threads_;
  const int64_t spin_nanoseconds_;
  std::vector<int> cpus_;  // one for each thread, or empty
  void (*work_)(void*, int) = nullptr;
  void* context_ = nullptr;
  bool stopping_ = false;
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<uint32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
  std::vector<std::thread> workers_;
};

}  // namespace qspec
