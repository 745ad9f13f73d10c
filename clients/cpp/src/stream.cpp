#include "qspec/stream.h"

#include <utility>

#include "call.h"
#include "status_error.h"

namespace qspec {

Stream::Stream(std::unique_ptr<Call> call) : call_(std::move(call)) {}
Stream::Stream(Stream&&) noexcept = default;

Stream& Stream::operator=(Stream&& other) noexcept {
  std::swap(call_, other.call_);
  return *this;
}

Stream::~Stream() {
  if (!call_ || call_->ended || !call_->pieces) {
    return;
  }
  cancel();
  v1::GenerateResponse piece;
  while (call_->pieces->Read(&piece)) {
  }
  call_->pieces->Finish();
}

std::optional<v1::GenerateResponse> Stream::next() {
  if (call_->ended) {
    return std::nullopt;
  }
  if (!call_->pieces) {
    call_->pieces = call_->service->Generate(&call_->context, call_->request);
  }
  v1::GenerateResponse piece;
  if (call_->pieces->Read(&piece)) {
    if (piece.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) {
      call_->unfinished--;
    }
    return piece;
  }
  call_->ended = true;
  if (const grpc::Status status = call_->pieces->Finish(); !status.ok()) {
    throw error_from(status);
  }
  if (call_->unfinished > 0) {
    throw Error(Code::kDataLoss, "the server ended the text without a reason");
  }
  return std::nullopt;
}

void Stream::cancel() { call_->context.TryCancel(); }

}  // namespace qspec
