// Private: failed calls of gRPC as errors.
#pragma once

#include <grpcpp/support/status.h>

#include "qspec/error.h"

namespace qspec {

// The error that a status other than OK stands for.
Error error_from(const grpc::Status& status);

}  // namespace qspec
