#include "lanes_neon.h"
#include "kernels.h"

namespace qspec {
extern const Kernels neon_kernels;
const Kernels neon_kernels = table_named("neon");
}  // namespace qspec
