// check.h: the little that the native tests share: exact-size buffers, random numbers, failure reports.
#ifndef ATTAR_TESTS_CHECK_H
#define ATTAR_TESTS_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

// Counts failures and prints the first few, with the subject under test.
typedef struct {
    int failures;
    char subject[160];
} check;

#define EXPECT(c, condition, ...)                                           \
    do {                                                                    \
        if (!(condition) && (c)->failures++ < 20) {                         \
            fprintf(stderr, "%s: expected %s: ", (c)->subject, #condition); \
            fprintf(stderr, __VA_ARGS__);                                   \
            fputc('\n', stderr);                                            \
        }                                                                   \
    } while (0)

#define SUBJECT(c, ...) snprintf((c)->subject, sizeof(c)->subject, __VA_ARGS__)

// Memory aligned to 64 bytes and ending exactly after `count` items, so that the address sanitizer sees any access
// beyond them. There is no test without memory: exits.
static inline void *new_items(size_t count, size_t item_bytes) {
    void *items = NULL;
    if (posix_memalign(&items, 64, count * item_bytes) != 0) {
        fputs("out of memory\n", stderr);
        exit(2);
    }
    return items;
}

static inline float *new_floats(size_t count) { return new_items(count, sizeof(float)); }

// xorshift64* (Vigna, 2016, arXiv:1402.6246): the same tests everywhere.
static inline uint64_t next_random(uint64_t *state) {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 2685821657736338717u;
}

static inline float random_float(uint64_t *state, float low, float high) {
    return low + (high - low) * (float)(next_random(state) >> 40) * 0x1p-24f;
}

static inline void fill_floats(uint64_t *state, float *x, size_t count, float low, float high) {
    for (size_t i = 0; i < count; i++) x[i] = random_float(state, low, high);
}

#endif
