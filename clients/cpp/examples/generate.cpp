// Streams the answer to one prompt. Ctrl-C cancels the request on the server.
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <thread>

#include "options.h"
#include "qspec/client.h"

namespace {

constexpr int kExitFailure = 1;
constexpr int kExitInput = 2;
constexpr int kExitSignal = 130;

// SIGINT and SIGTERM, which a thread of its own waits for: no other thread may take them.
sigset_t block_ending_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signals;
}

// Cancels a stream at SIGINT or SIGTERM for as long as it lives.
class Interruption {
 public:
  Interruption(const sigset_t& signals, qspec::Stream& stream)
      : waiter_([this, signals, &stream] {
          int number = 0;
          sigwait(&signals, &number);
          if (!over_) {
            happened_ = true;
            stream.cancel();
          }
        }) {}

  ~Interruption() {
    over_ = true;
    pthread_kill(waiter_.native_handle(), SIGTERM);  // wakes it
    waiter_.join();
  }

  bool happened() const { return happened_; }

 private:
  std::atomic<bool> over_ = false;
  std::atomic<bool> happened_ = false;
  std::thread waiter_;
};

std::string reason_name(qspec::v1::FinishReason reason) {
  std::string name = qspec::v1::FinishReason_Name(reason);
  if (name.empty()) {
    return std::to_string(reason);  // a newer server's
  }
  name.erase(0, std::string("FINISH_REASON_").size());
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char c) { return c == '_' ? ' ' : static_cast<char>(std::tolower(c)); });
  return name;
}

// Prints all pieces and returns the last one.
qspec::v1::GenerateResponse print(qspec::Stream& stream) {
  struct LineEnd {  // what comes next starts on a line of its own
    bool needed = false;
    ~LineEnd() {
      if (needed) {
        std::cout << std::endl;
      }
    }
  } line;
  qspec::v1::GenerateResponse last;
  while (auto piece = stream.next()) {
    line.needed = true;
    if (!(std::cout << piece->text() << std::flush)) {
      throw std::runtime_error("standard output cannot be written");
    }
    last = std::move(*piece);
  }
  return last;
}

// The text as it comes, and figures at the end; returns the exit code.
int run(const Options& options, const sigset_t& signals) {
  const qspec::Client client(options.address, options.connection);
  qspec::Stream stream = client.generate(options.request, options.timeout);
  Interruption interruption(signals, stream);
  try {
    const auto last = print(stream);
    std::fprintf(stderr, "%u tokens, %.1f tokens/s, ended by %s\n", last.usage().completion_tokens(),
                 last.usage().tokens_per_second(), reason_name(last.finish_reason()).c_str());
    return 0;
  } catch (const qspec::Error&) {
    if (!interruption.happened()) {
      throw;
    }
    std::cerr << "interrupted\n";
    return kExitSignal;
  }
}

int report(const std::string& line, int code) {
  std::cerr << "error: " << line << "\n";
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  const sigset_t signals = block_ending_signals();
  setenv("GRPC_VERBOSITY", "NONE", 0);  // its own lines about a failed handshake
  std::string address;
  try {
    const auto options = parse(argc, argv);
    if (!options) {
      std::cout << help();
      return 0;
    }
    address = options->address;
    return run(*options, signals);
  } catch (const InputError& error) {
    return report(error.what(), kExitInput);
  } catch (const std::invalid_argument& error) {
    return report(error.what(), kExitInput);
  } catch (const qspec::Error& error) {
    if (error.code() == qspec::Code::kUnavailable && error.details().reason.empty()) {
      return report(address + " cannot be reached, or has gone away (" + error.what() + ")", kExitFailure);
    }
    return report(error.what(), error.code() == qspec::Code::kInvalidArgument ? kExitInput : kExitFailure);
  } catch (const std::exception& error) {
    return report(error.what(), kExitFailure);
  }
}
