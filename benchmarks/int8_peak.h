// int8_peak.h: how many 8-bit multiply-adds a second one thread can start at most: the multiply instruction of a table,
// alone, on enough independent registers.
#ifndef ATTAR_INT8_PEAK_H
#define ATTAR_INT8_PEAK_H

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)

// Ten independent chains hide a latency of 5 cycles on two ports.
__attribute__((target("avx2"))) static inline void multiply_avx2(int64_t rounds) {
    for (int64_t i = 0; i < rounds; i++) {
        __asm__ volatile(
            "vpmaddubsw %%ymm14, %%ymm15, %%ymm0\n vpmaddubsw %%ymm14, %%ymm15, %%ymm1\n"
            "vpmaddubsw %%ymm14, %%ymm15, %%ymm2\n vpmaddubsw %%ymm14, %%ymm15, %%ymm3\n"
            "vpmaddubsw %%ymm14, %%ymm15, %%ymm4\n vpmaddubsw %%ymm14, %%ymm15, %%ymm5\n"
            "vpmaddubsw %%ymm14, %%ymm15, %%ymm6\n vpmaddubsw %%ymm14, %%ymm15, %%ymm7\n"
            "vpmaddubsw %%ymm14, %%ymm15, %%ymm8\n vpmaddubsw %%ymm14, %%ymm15, %%ymm9\n" ::
                : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9");
    }
}

__attribute__((target("avx512f,avx512vnni"))) static inline void multiply_avx512(int64_t rounds) {
    for (int64_t i = 0; i < rounds; i++) {
        __asm__ volatile(
            "vpdpbusd %%zmm14, %%zmm15, %%zmm0\n vpdpbusd %%zmm14, %%zmm15, %%zmm1\n"
            "vpdpbusd %%zmm14, %%zmm15, %%zmm2\n vpdpbusd %%zmm14, %%zmm15, %%zmm3\n"
            "vpdpbusd %%zmm14, %%zmm15, %%zmm4\n vpdpbusd %%zmm14, %%zmm15, %%zmm5\n"
            "vpdpbusd %%zmm14, %%zmm15, %%zmm6\n vpdpbusd %%zmm14, %%zmm15, %%zmm7\n"
            "vpdpbusd %%zmm14, %%zmm15, %%zmm8\n vpdpbusd %%zmm14, %%zmm15, %%zmm9\n" ::
                : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9");
    }
}

#elif defined(__aarch64__)

__attribute__((target("+dotprod"))) static inline void multiply_neon(int64_t rounds) {
    for (int64_t i = 0; i < rounds; i++) {
        __asm__ volatile(
            "sdot v0.4s, v30.16b, v31.16b\n sdot v1.4s, v30.16b, v31.16b\n sdot v2.4s, v30.16b, v31.16b\n"
            "sdot v3.4s, v30.16b, v31.16b\n sdot v4.4s, v30.16b, v31.16b\n sdot v5.4s, v30.16b, v31.16b\n"
            "sdot v6.4s, v30.16b, v31.16b\n sdot v7.4s, v30.16b, v31.16b\n sdot v16.4s, v30.16b, v31.16b\n"
            "sdot v17.4s, v30.16b, v31.16b\n" ::
                : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v16", "v17");
    }
}

#endif

// Runs `rounds` rounds of the multiply instruction of the table `name`; returns the multiply-adds of a round, 0 for a
// table without one.
static inline int32_t int8_peak_run(const char *name, int64_t rounds) {
#if defined(__x86_64__)
    if (strcmp(name, "avx512") == 0) {
        multiply_avx512(rounds);
        return 10 * 64;
    }
    if (strcmp(name, "avx2") == 0) {
        multiply_avx2(rounds);
        return 10 * 32;
    }
#elif defined(__aarch64__)
    if (strcmp(name, "neon") == 0) {
        multiply_neon(rounds);
        return 10 * 16;
    }
#endif
    (void)rounds;
    return 0;
}

#endif
