// Failed calls.
#pragma once

#include <chrono>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace qspec {

// gRPC's status codes.
enum class Code {
  kOk = 0,
  kCancelled = 1,
  kUnknown = 2,
  kInvalidArgument = 3,
  kDeadlineExceeded = 4,
  kNotFound = 5,
  kAlreadyExists = 6,
  kPermissionDenied = 7,
  kResourceExhausted = 8,
  kFailedPrecondition = 9,
  kAborted = 10,
  kOutOfRange = 11,
  kUnimplemented = 12,
  kInternal = 13,
  kUnavailable = 14,
  kDataLoss = 15,
  kUnauthenticated = 16,
};

// What is wrong with one field of a request.
struct FieldViolation {
  std::string field;
  std::string description;
};

// What the server sent beside code and message.
struct ErrorDetails {
  std::vector<FieldViolation> violations;                // Every offending field, with kInvalidArgument.
  std::string reason;                                    // Tells errors of one code apart, for example QUEUE_FULL.
  std::optional<std::chrono::milliseconds> retry_after;  // When the same request may succeed, where it may.
};

// A failed call; what() is one line: the code's name, then the fields with what is wrong, or else the message.
class Error : public std::runtime_error {
 public:
  Error(Code code, std::string message, ErrorDetails details = {});

  Code code() const { return code_; }
  const std::string& message() const { return message_; }
  const ErrorDetails& details() const { return details_; }

 private:
  Code code_;
  std::string message_;
  ErrorDetails details_;
};

}  // namespace qspec
