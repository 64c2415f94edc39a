#include "kernels.h"

#if defined(ATTAR_X86_KERNELS)
#include <cpuid.h>

// Bits of XCR0: registers the operating system saves on a context switch. Without them a CPU that has the
// instructions still must not use them.
enum { XCR0_YMM = 0x6, XCR0_ZMM = 0xE6 };

static uint32_t read_xcr0(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

typedef struct {
    bool avx2, avx512;
} cpu_features;

static cpu_features read_cpu_features(void) {
    cpu_features features = {false, false};
    uint32_t eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_OSXSAVE)) return features;
    const uint32_t xcr0 = read_xcr0();
    const uint32_t first = bit_AVX | bit_FMA | bit_F16C;
    const bool has_first = (ecx & first) == first;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return features;
    const uint32_t avx512 = bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ;
    features.avx2 = has_first && (ebx & bit_AVX2) && (xcr0 & XCR0_YMM) == XCR0_YMM;
    features.avx512 =
        features.avx2 && (ebx & avx512) == avx512 && (ecx & bit_AVX512VNNI) && (xcr0 & XCR0_ZMM) == XCR0_ZMM;
    return features;
}
#elif defined(ATTAR_NEON_KERNELS) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>

static bool has_dot_product(void) { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }
#elif defined(ATTAR_NEON_KERNELS)
// Elsewhere only the compiler knows; every 64-bit Apple CPU but the first few has dot products.
static bool has_dot_product(void) {
#if defined(__ARM_FEATURE_DOTPROD) || defined(__APPLE__)
    return true;
#else
    return false;
#endif
}
#endif

int32_t attar_kernels_available(const attar_kernels *out[4]) {
    int32_t n = 0;
#if defined(ATTAR_X86_KERNELS)
    const cpu_features features = read_cpu_features();
    if (features.avx512) out[n++] = &attar_kernels_avx512;
    if (features.avx2) out[n++] = &attar_kernels_avx2;
#endif
#if defined(ATTAR_NEON_KERNELS)
    if (has_dot_product()) out[n++] = &attar_kernels_neon;
#endif
    out[n++] = &attar_kernels_scalar;
    return n;
}

const attar_kernels *attar_kernels_choose(void) {
    const attar_kernels *tables[4];
    attar_kernels_available(tables);
    return tables[0];
}
