// How a server is reached.
#pragma once

#include <optional>
#include <string>

namespace qspec {

// PEM texts. What is left empty is the system's (the authorities), or not shown (certificate and key).
struct Tls {
  std::string ca;           // Authorities to trust.
  std::string certificate;  // This client's certificate, where the server demands one.
  std::string key;          // Its key.
};

// Left as it is: in plain text, without a key.
struct ConnectionOptions {
  std::optional<Tls> tls;  // Encrypt.
  std::string api_key;     // Sent with every call ("authorization: Bearer …").
  bool insecure = false;   // Let the key leave this machine in plain text, which is refused otherwise.
  std::string client_id;   // Tells this client's requests from those of others at the same address.
};

}  // namespace qspec
