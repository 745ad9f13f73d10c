#include "lanes_avx512.h"
#include "lanes_x86.h"
#include "kernels.h"

namespace qspec {
extern const Kernels avx512_vnni_kernels;
const Kernels avx512_vnni_kernels = table_named("avx512-vnni");
}  // namespace qspec
