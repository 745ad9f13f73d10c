#include "instruction_sets.h"

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace qspec {

#if defined(__x86_64__)
extern const Kernels avx2_kernels, avx512_kernels, avx512_vnni_kernels, avx512_vbmi_kernels;

std::vector<const Kernels*> usable_kernels() {
  std::vector<const Kernels*> usable;
  __builtin_cpu_init();  // asks the operating system, too, whether it saves the registers
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  [[maybe_unused]] const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#ifndef QSPEC_ONLY_AVX2
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  if (vnni && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("gfni"))
    usable.push_back(&avx512_vbmi_kernels);
  if (vnni) usable.push_back(&avx512_vnni_kernels);
  if (avx512) usable.push_back(&avx512_kernels);
#endif
  if (avx2) usable.push_back(&avx2_kernels);
  return usable;
}
#elif defined(__aarch64__)
extern const Kernels neon_kernels, neon_dotprod_kernels;

std::vector<const Kernels*> usable_kernels() {
  std::vector<const Kernels*> usable;
#if defined(__linux__)
  if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) usable.push_back(&neon_dotprod_kernels);
#endif
  usable.push_back(&neon_kernels);
  return usable;
}
#endif

}  // namespace qspec
