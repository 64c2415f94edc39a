#include "kernels.h"

const engine_kernels *choose_kernels(void) {
#if defined(ATTAR_ENGINE_AVX2)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &engine_kernels_avx2;
#endif
    return &engine_kernels_portable;
}
