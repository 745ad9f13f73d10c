#include <regex>
#include <stdexcept>

#include "connection_rules.h"

namespace qspec {

void check_connection(const std::string& address, const ConnectionOptions& options) {
  if (address.rfind("unix:", 0) == 0) {
    return;
  }
  std::smatch parts;
  if (!std::regex_match(address, parts, std::regex(R"((.+):\d{1,5})"))) {
    throw std::invalid_argument("\"" + address + "\" is no address; write HOST:PORT or unix:PATH");
  }
  const bool local = std::regex_match(parts[1].str(), std::regex(R"(localhost|\[::1\]|127(\.\d{1,3}){3})"));
  if (!options.api_key.empty() && !options.tls && !options.insecure && !local) {
    throw std::invalid_argument(
        "the API key would leave this machine in plain text: use TLS, or say that this is wanted (insecure)");
  }
}

std::shared_ptr<grpc::ChannelCredentials> channel_credentials(const ConnectionOptions& options) {
  if (!options.tls) {
    return grpc::InsecureChannelCredentials();
  }
  grpc::SslCredentialsOptions ssl;
  ssl.pem_root_certs = options.tls->ca;
  ssl.pem_cert_chain = options.tls->certificate;
  ssl.pem_private_key = options.tls->key;
  return grpc::SslCredentials(ssl);
}

void prepare(grpc::ClientContext& context, const ConnectionOptions& options, Timeout timeout) {
  if (timeout) {
    context.set_deadline(std::chrono::system_clock::now() + *timeout);
  }
  if (!options.api_key.empty()) {
    context.AddMetadata("authorization", "Bearer " + options.api_key);
  }
  if (!options.client_id.empty()) {
    context.AddMetadata("qspec-client-id", options.client_id);
  }
}

}  // namespace qspec
