// Private: what is checked before, and said at, every call.
#pragma once

#include <memory>
#include <string>

#include <grpcpp/client_context.h>
#include <grpcpp/security/credentials.h>

#include "qspec/client.h"

namespace qspec {

// Throws std::invalid_argument for what is neither HOST:PORT nor unix:PATH, and where the key would leave in plain text.
void check_connection(const std::string& address, const ConnectionOptions& options);

std::shared_ptr<grpc::ChannelCredentials> channel_credentials(const ConnectionOptions& options);

// Sets deadline and metadata of a call.
void prepare(grpc::ClientContext& context, const ConnectionOptions& options, Timeout timeout);

}  // namespace qspec
