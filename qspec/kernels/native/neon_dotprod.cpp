#include "lanes_neon.h"
#include "kernels.h"

namespace qspec {
extern const Kernels neon_dotprod_kernels;
const Kernels neon_dotprod_kernels = table_named("neon-dotprod");
}  // namespace qspec
