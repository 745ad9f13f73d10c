// Private: a call of Generate. The first next() begins it, because beginning waits for the connection, and a stream that
// waits can be cancelled.
#pragma once

#include <memory>

#include <grpcpp/client_context.h>
#include <grpcpp/support/sync_stream.h>

#include "qspec/stream.h"
#include "qspec/v1/generation.grpc.pb.h"

namespace qspec {

struct Stream::Call {
  grpc::ClientContext context;
  std::shared_ptr<v1::GenerationService::Stub> service;
  v1::GenerateRequest request;
  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> pieces;  // Nothing before it has begun.
  std::uint32_t unfinished = 1;  // Choices whose last piece is still to come.
  bool ended = false;
};

}  // namespace qspec
