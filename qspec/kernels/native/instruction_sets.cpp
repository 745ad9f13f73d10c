#include "instruction_sets.h"

namespace qspec {

extern const Kernels avx2_kernels, avx512_kernels, avx512_vnni_kernels;

std::vector<const Kernels*> usable_kernels() {
  std::vector<const Kernels*> usable;
  __builtin_cpu_init();  // asks the operating system, too, whether it saves the registers
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512vnni")) usable.push_back(&avx512_vnni_kernels);
  if (avx512) usable.push_back(&avx512_kernels);
  if (avx2) usable.push_back(&avx2_kernels);
  return usable;
}

}  // namespace qspec
