// roofline_probe: the two limits of this machine, measured.
//
//   roofline_probe KERNELS THREADS BYTES...
//
// Prints one line of JSON: how many bytes a second THREADS threads read from buffers of each size, and how many 8-bit
// multiply-adds a second they start with the widest instruction of the table KERNELS (avx2, avx512, neon). Best of many
// passes: other programs can only slow one down.
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "int8_peak.h"

enum { MOST_THREADS = 64, STREAMS = 4, PEAK_ROUNDS = 3000000 };
static const double SECONDS = 0.7;  // of each measurement

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define WIDEST __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define WIDEST
#endif

typedef uint64_t line __attribute__((vector_size(64)));

typedef struct {
    const char *kernels;
    const line *data;
    size_t lines;  // of one thread; 0 measures the multiply instruction instead
    int32_t threads;
    bool done;
    pthread_barrier_t barrier;
} job;

typedef struct {
    job *job;
    int32_t thread;
    double best;    // seconds of the fastest pass
    uint64_t seen;  // keeps the reads alive
} worker;

static double now_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

// Sums `lines` lines in a few streams far apart, which keeps more reads on the way than one does.
WIDEST static uint64_t read_lines(const line *data, size_t lines) {
    line sums[STREAMS] = {{0}};
    const size_t stride = lines / STREAMS;
    for (size_t i = 0; i < stride; i++) {
        for (size_t s = 0; s < STREAMS; s++) sums[s] += data[s * stride + i];
    }
    const line sum = sums[0] + sums[1] + sums[2] + sums[3];
    return sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
}

static void *run(void *argument) {
    worker *w = argument;
    job *j = w->job;
    const double end = now_seconds() + SECONDS;
    w->best = 1e9;
    for (int pass = 1; !j->done; pass++) {
        // Passes start together, so that the fastest one is a figure of all threads at once.
        pthread_barrier_wait(&j->barrier);
        const double start = now_seconds();
        if (j->lines)
            w->seen += read_lines(j->data + (size_t)w->thread * j->lines, j->lines);
        else
            int8_peak_run(j->kernels, PEAK_ROUNDS);
        pthread_barrier_wait(&j->barrier);
        const double spent = now_seconds() - start;
        w->best = spent < w->best ? spent : w->best;
        if (w->thread == 0) j->done = pass >= 3 && now_seconds() >= end;  // one clock decides for all
        pthread_barrier_wait(&j->barrier);
    }
    return NULL;
}

static double best_seconds(job *j) {
    pthread_t ids[MOST_THREADS];
    worker workers[MOST_THREADS];
    const int32_t n = j->threads;
    j->done = false;
    pthread_barrier_init(&j->barrier, NULL, (unsigned)n);
    for (int32_t i = 0; i < n; i++) workers[i] = (worker){.job = j, .thread = i};
    for (int32_t i = 1; i < n; i++) pthread_create(&ids[i], NULL, run, &workers[i]);
    run(&workers[0]);
    for (int32_t i = 1; i < n; i++) pthread_join(ids[i], NULL);
    pthread_barrier_destroy(&j->barrier);
    return workers[0].best;
}

static double read_rate(job *j, size_t bytes) {
    const size_t large = (size_t)2 << 20, size = (bytes + large - 1) / large * large;
    void *memory = NULL;
    if (posix_memalign(&memory, large, size) != 0) return 0;
#ifdef MADV_HUGEPAGE
    madvise(memory, size, MADV_HUGEPAGE);  // a bound should not count page walks
#endif
    memset(memory, 1, size);
    j->data = memory;
    j->lines = bytes / sizeof(line) / (size_t)j->threads / STREAMS * STREAMS;
    const double rate = (double)j->lines * sizeof(line) * j->threads / best_seconds(j);
    free(memory);
    return rate;
}

int main(int argc, char **argv) {
    const int32_t threads = argc > 2 ? atoi(argv[2]) : 0;
    if (threads < 1 || threads > MOST_THREADS) {
        fprintf(stderr, "usage: roofline_probe KERNELS THREADS BYTES..., with 1 to %d threads\n", MOST_THREADS);
        return 2;
    }
    job j = {.kernels = argv[1], .threads = threads};
    const double macs = (double)int8_peak_run(j.kernels, 0) * PEAK_ROUNDS * threads;
    printf("{\"threads\": %d, \"int8_macs_per_second\": %.4g, \"bytes_per_second\": {", threads,
           macs > 0 ? macs / best_seconds(&j) : 0);
    for (int i = 3; i < argc; i++) {
        printf("%s\"%s\": %.4g", i > 3 ? ", " : "", argv[i], read_rate(&j, strtoull(argv[i], NULL, 10)));
    }
    puts("}}");
    return 0;
}
