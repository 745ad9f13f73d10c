// A client of a QSPEC server: streams generated text, and turns failed calls into errors that name the offending fields
// and say when to try again.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "qspec/connection.h"
#include "qspec/error.h"
#include "qspec/stream.h"
#include "qspec/v1/generation.pb.h"

namespace qspec {

// The call's deadline, from now; none without.
using Timeout = std::optional<std::chrono::milliseconds>;

// A connection to one server, which the first call makes. Safe to use from several threads.
class Client {
 public:
  // `address` is HOST:PORT or unix:PATH. Throws std::invalid_argument for another, and for options that do not fit.
  explicit Client(const std::string& address, ConnectionOptions options = {});
  ~Client();

  // Generates, from the stream's first next() on, which also tells what is wrong with the request; the timeout runs from
  // now on. The stream may outlive the client.
  Stream generate(const v1::GenerateRequest& request, Timeout timeout = {}) const;

  // What runs on the server; answers while the model is being loaded, too. Throws Error.
  v1::GetServerInfoResponse server_info(Timeout timeout = {}) const;

  // The tokens of a text or a conversation, as generate() would see them. Throws Error.
  std::vector<std::uint32_t> tokenize(const v1::TokenizeRequest& request, Timeout timeout = {}) const;

 private:
  struct Connection;
  std::unique_ptr<Connection> connection_;
};

}  // namespace qspec
