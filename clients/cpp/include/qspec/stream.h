// The text of one request.
#pragma once

#include <memory>
#include <optional>

#include "qspec/v1/generation.pb.h"

namespace qspec {

// The pieces of a text as they are decided. Destroying it before its end cancels the request on the server.
class Stream {
 public:
  Stream(Stream&&) noexcept;
  Stream& operator=(Stream&&) noexcept;
  ~Stream();

  // Waits for the next piece; none after the last one. Throws Error.
  std::optional<v1::GenerateResponse> next();

  // Ends the request on the server: next() throws an Error with kCancelled. Any thread may call it, at any time.
  void cancel();

 private:
  friend class Client;
  struct Call;
  explicit Stream(std::unique_ptr<Call> call);
  std::unique_ptr<Call> call_;
};

}  // namespace qspec
