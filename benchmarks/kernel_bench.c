// kernel_bench: the matrix kernels alone, beside the memory's read bandwidth.
//
//   kernel_bench [threads]
//
// Decode: one token times 48 matrices [1536, 1536], more than the caches hold; GB/s of weights read. Prefill: 512
// tokens times one such matrix; GOP/s, a multiply and an add counting two. The best of several runs, since other
// programs can only slow a run down.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels.h"
#include "threads.h"

enum { ROWS = 1536, COLS = 1536, MATRICES = 48, TOKENS = 512, RUNS = 15 };

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *allocate(size_t bytes) {
    void *memory = NULL;
    if (posix_memalign(&memory, 64, bytes) != 0) {
        fputs("out of memory\n", stderr);
        exit(1);
    }
    memset(memory, 1, bytes);
    return memory;
}

typedef struct {
    attar_pool *pool;
    const attar_kernels *kernels;
    attar_weight w;
    int32_t matrices, tokens;
    const float *x;
    attar_act act;
    float *y;
} job;

static void multiply(void *context, int32_t thread, int32_t n_threads) {
    const job *j = context;
    int32_t begin, end;
    attar_split(ROWS, 16, thread, n_threads, &begin, &end);
    for (int32_t m = 0; m < j->matrices; m++) {
        attar_weight w = j->w;
        w.data += (uint64_t)m * ROWS * w.row_bytes;
        if (attar_type_get(w.type).integer) {
            j->kernels->matmul(&w, begin, end, j->act, j->tokens, j->y, ROWS);
        } else {
            j->kernels->matmul_f32(&w, begin, end, j->x, j->tokens, j->y, ROWS);
        }
        attar_pool_barrier(j->pool);
    }
}

// Sums 64-bit words; the compiler makes vectors of it.
static void read_all(void *context, int32_t thread, int32_t n_threads) {
    const job *j = context;
    int32_t begin, end;
    attar_split((int32_t)(j->w.row_bytes * ROWS / 8 * MATRICES), 8, thread, n_threads, &begin, &end);
    uint64_t sum = 0;
    for (int32_t i = begin; i < end; i++) {
        uint64_t word;
        memcpy(&word, j->w.data + (size_t)i * 8, 8);
        sum += word;
    }
    j->y[thread] = (float)sum;
}

static double best_seconds(const job *j, attar_task task) {
    double best = 1e9;
    for (int run = 0; run < RUNS; run++) {
        const double start = seconds_now();
        attar_pool_run(j->pool, task, (void *)(uintptr_t)j);
        const double spent = seconds_now() - start;
        best = spent < best ? spent : best;
    }
    return best;
}

static void bench_type(job j, uint32_t type) {
    j.w = (attar_weight){j.w.data, attar_row_bytes(type, COLS), type, ROWS, COLS};
    j.matrices = MATRICES;
    j.tokens = 1;
    const double bytes = (double)j.w.row_bytes * ROWS * MATRICES;
    const double decode = best_seconds(&j, multiply), bandwidth = best_seconds(&j, read_all);
    j.matrices = 1;
    j.tokens = TOKENS;
    const double prefill = best_seconds(&j, multiply);
    printf("%-8s %-6s %8.1f GB/s %8.1f GB/s %9.1f GOP/s\n", j.kernels->name, attar_type_get(type).name,
           bytes / decode * 1e-9, bytes / bandwidth * 1e-9, 2.0 * ROWS * COLS * TOKENS / prefill * 1e-9);
    fflush(stdout);
}

int main(int argc, char **argv) {
    static const uint32_t types[] = {ATTAR_Q4_0, ATTAR_Q4_1, ATTAR_Q5_0, ATTAR_Q8_0, ATTAR_Q4_K,
                                     ATTAR_Q5_K, ATTAR_Q6_K, ATTAR_F16,  ATTAR_BF16, ATTAR_F32};
    const int32_t n_threads = argc > 1 ? atoi(argv[1]) : attar_usable_cores();
    attar_error error = {0};
    job j = {0};
    if (attar_pool_create(n_threads, &j.pool, &error) != ATTAR_OK) {
        fprintf(stderr, "%s\n", error.message);
        return 2;
    }
    const size_t values = (size_t)TOKENS * COLS;
    j.w.data = allocate((size_t)ROWS * COLS * MATRICES * 4);
    j.x = allocate(values * sizeof(float));
    j.act = (attar_act){allocate(values * 2), allocate(values / 8), allocate(values / 8)};
    j.y = allocate((size_t)TOKENS * ROWS * sizeof(float));
    const attar_kernels *tables[4];
    const int32_t n = attar_kernels_available(tables);
    printf("%d threads\nkernels  type        decode      read alone        prefill\n", n_threads);
    for (int32_t t = 0; t < n - (n > 1); t++) {  // the scalar table only where there is no other
        j.kernels = tables[t];
        for (size_t i = 0; i < sizeof types / sizeof *types; i++) bench_type(j, types[i]);
    }
    attar_pool_free(j.pool);
    return 0;
}
