// x86_intrinsics.h: vector instructions. ATTAR_EMULATE_AVX512 is for tests: it takes those of AVX-512 from a file in
// tests/native, so that the AVX-512 kernels run on any CPU with AVX2.
#ifndef ATTAR_X86_INTRINSICS_H
#define ATTAR_X86_INTRINSICS_H

#include <immintrin.h>
#if defined(ATTAR_EMULATE_AVX512)
#include "emulate_avx512.h"
#endif

// Loops whose counters choose instructions. Emulated instructions are long: unrolled, they take gcc minutes.
#if defined(ATTAR_EMULATE_AVX512)
#define ATTAR_UNROLL(n)
#else
#define ATTAR_PRAGMA(text) _Pragma(#text)
#define ATTAR_UNROLL(n) ATTAR_PRAGMA(GCC unroll n)
#endif

#endif
