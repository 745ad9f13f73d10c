#include "lanes_avx2.h"
#include "lanes_x86.h"
#include "kernels.h"

namespace qspec {
extern const Kernels avx2_kernels;
const Kernels avx2_kernels = table_named("avx2");
}  // namespace qspec
