// The example's command line.
#pragma once

#include <optional>
#include <stdexcept>
#include <string>

#include "qspec/client.h"

struct Options {
  std::string address = "127.0.0.1:50051";
  qspec::ConnectionOptions connection;
  qspec::v1::GenerateRequest request;
  qspec::Timeout timeout;
};

// What the user can mend on the command line.
struct InputError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The options; none where help was asked for. Throws InputError.
std::optional<Options> parse(int argc, char** argv);

std::string help();
