#include "lanes_avx512.h"
#include "lanes_x86.h"
#include "kernels.h"

namespace qspec {
extern const Kernels avx512_vbmi_kernels;
const Kernels avx512_vbmi_kernels = table_named("avx512-vbmi");
}  // namespace qspec
