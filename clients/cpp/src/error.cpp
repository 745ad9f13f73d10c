#include "qspec/error.h"

#include <array>
#include <cstdio>
#include <utility>

#include "status_details.pb.h"
#include "status_error.h"

namespace qspec {
namespace {

std::string name_of(Code code) {
  static constexpr std::array names = {
      "OK",               "CANCELLED",          "UNKNOWN",      "INVALID_ARGUMENT",
      "DEADLINE_EXCEEDED", "NOT_FOUND",          "ALREADY_EXISTS", "PERMISSION_DENIED",
      "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED",      "OUT_OF_RANGE",
      "UNIMPLEMENTED",    "INTERNAL",           "UNAVAILABLE",  "DATA_LOSS",
      "UNAUTHENTICATED",
  };
  const auto number = static_cast<std::size_t>(code);
  return number < names.size() ? names[number] : "CODE_" + std::to_string(number);
}

std::string line_of(Code code, const std::string& message, const ErrorDetails& details) {
  std::string text = message.substr(0, message.find('\n'));
  if (!details.violations.empty()) {
    text.clear();
    for (const FieldViolation& violation : details.violations) {
      text += (text.empty() ? "" : "; ") + violation.field + ": " + violation.description;
    }
  }
  if (details.retry_after) {
    char seconds[32];
    std::snprintf(seconds, sizeof seconds, "%.1f", static_cast<double>(details.retry_after->count()) / 1000.0);
    text += "; try again in " + std::string(seconds) + " s";
  }
  return name_of(code) + ": " + text;
}

// Reads `any` as Message where it says that it holds google.rpc's of that name.
template <typename Message>
std::optional<Message> unpack(const google::protobuf::Any& any, const std::string& name) {
  const std::string& url = any.type_url();
  Message message;
  if (url.substr(url.rfind('/') + 1) != "google.rpc." + name || !message.ParseFromString(any.value())) {
    return std::nullopt;
  }
  return message;
}

ErrorDetails read_details(const std::string& bytes) {
  ErrorDetails found;
  client_details::Status status;
  if (!status.ParseFromString(bytes)) {
    return found;
  }
  for (const google::protobuf::Any& detail : status.details()) {
    if (const auto bad_request = unpack<client_details::BadRequest>(detail, "BadRequest")) {
      for (const auto& violation : bad_request->field_violations()) {
        found.violations.push_back({violation.field(), violation.description()});
      }
    } else if (const auto info = unpack<client_details::ErrorInfo>(detail, "ErrorInfo")) {
      found.reason = info->reason();
    } else if (const auto retry = unpack<client_details::RetryInfo>(detail, "RetryInfo")) {
      found.retry_after = std::chrono::seconds(retry->retry_delay().seconds()) +
                          std::chrono::milliseconds(retry->retry_delay().nanos() / 1'000'000);
    }
  }
  return found;
}

}  // namespace

Error::Error(Code code, std::string message, ErrorDetails details)
    : std::runtime_error(line_of(code, message, details)),
      code_(code),
      message_(std::move(message)),
      details_(std::move(details)) {}

Error error_from(const grpc::Status& status) {
  return Error(
      static_cast<Code>(status.error_code()), status.error_message(), read_details(status.error_details()));
}

}  // namespace qspec
