// Private: a call of Generate that runs.
#pragma once

#include <memory>

#include <grpcpp/client_context.h>
#include <grpcpp/support/sync_stream.h>

#include "qspec/stream.h"
#include "qspec/v1/generation.grpc.pb.h"

namespace qspec {

struct Stream::Call {
  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> pieces;
  std::uint32_t unfinished = 1;  // Choices whose last piece is still to come.
  bool ended = false;
};

}  // namespace qspec
