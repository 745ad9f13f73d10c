// Which of the compiled kernels this CPU can run.
#pragma once
#include <vector>

#include "matrix.h"

namespace qspec {

// Best first; empty where there are none.
std::vector<const Kernels*> usable_kernels();

}  // namespace qspec
