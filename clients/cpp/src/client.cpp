#include "qspec/client.h"

#include <utility>

#include <grpcpp/create_channel.h>

#include "call.h"
#include "connection_rules.h"
#include "qspec/v1/generation.grpc.pb.h"
#include "status_error.h"

namespace qspec {

struct Client::Connection {
  ConnectionOptions options;
  std::shared_ptr<v1::GenerationService::Stub> service;
};

Client::Client(const std::string& address, ConnectionOptions options) {
  check_connection(address, options);
  auto channel = grpc::CreateChannel(address, channel_credentials(options));
  connection_ = std::make_unique<Connection>(
      Connection{std::move(options), v1::GenerationService::NewStub(channel)});
}

Client::~Client() = default;

Stream Client::generate(const v1::GenerateRequest& request, Timeout timeout) const {
  auto call = std::make_unique<Stream::Call>();
  prepare(call->context, connection_->options, timeout);
  call->unfinished = request.has_n() ? request.n() : 1;
  call->service = connection_->service;
  call->request = request;
  return Stream(std::move(call));
}

v1::GetServerInfoResponse Client::server_info(Timeout timeout) const {
  grpc::ClientContext context;
  prepare(context, connection_->options, timeout);
  v1::GetServerInfoResponse response;
  if (const auto status = connection_->service->GetServerInfo(&context, {}, &response); !status.ok()) {
    throw error_from(status);
  }
  return response;
}

std::vector<std::uint32_t> Client::tokenize(const v1::TokenizeRequest& request, Timeout timeout) const {
  grpc::ClientContext context;
  prepare(context, connection_->options, timeout);
  v1::TokenizeResponse response;
  if (const auto status = connection_->service->Tokenize(&context, request, &response); !status.ok()) {
    throw error_from(status);
  }
  return {response.token_ids().begin(), response.token_ids().end()};
}

}  // namespace qspec
