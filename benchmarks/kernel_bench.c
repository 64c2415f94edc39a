// kernel_bench: the matrix kernels alone, beside the memory's read bandwidth and the peak of the multiply instruction.
//
//   kernel_bench [--json] [threads]
//
// Decode: one token times as many matrices [1536, 1536] as make up 96 MB, more than most caches hold; GB/s of packed
// weights. Prefill: 512 tokens times one such matrix; GMAC/s. The best of several runs, since other programs can only
// slow a run down. Random bytes are weights as good as any here.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "int8_peak.h"
#include "kernels.h"
#include "packed.h"
#include "threads.h"

enum {
    ROWS = 1536,
    COLS = 1536,
    TOKENS = 512,
    RUNS = 15,
    WEIGHT_BYTES = 96 << 20,
    HUGE_PAGE = 2 << 20,
    READ_STREAMS = 4,
    PEAK_ROUNDS = 2000000
};

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// In huge pages where the system has them, as the runtime's weights.
static void *allocate(size_t bytes) {
    void *memory = NULL;
    if (posix_memalign(&memory, HUGE_PAGE, bytes) != 0) {
        fputs("out of memory\n", stderr);
        exit(1);
    }
#if defined(MADV_HUGEPAGE)
    (void)madvise(memory, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
#endif
    memset(memory, 1, bytes);
    return memory;
}

typedef struct {
    attar_pool *pool;
    const attar_kernels *kernels;
    attar_weight w;  // the first of `matrices`, matrix_bytes apart
    uint64_t matrix_bytes;
    int32_t matrices, tokens;
    const float *x;
    attar_act act;
    float *y;
} job;

// --- work -----------------------------------------------------------------------------------------------------

static void multiply(void *context, int32_t thread, int32_t n_threads) {
    const job *j = context;
    int32_t begin, end;
    attar_split(ROWS, ATTAR_TILE_ROWS, thread, n_threads, &begin, &end);
    for (int32_t m = 0; m < j->matrices; m++) {
        attar_weight w = j->w;
        w.data += (uint64_t)m * j->matrix_bytes;
        if (attar_type_get(w.type).integer) {
            j->kernels->matmul(&w, begin, end, j->act, j->tokens, j->y, ROWS);
        } else {
            j->kernels->matmul_f32(&w, begin, end, j->x, j->tokens, j->y, ROWS);
        }
        attar_pool_barrier(j->pool);
    }
}

typedef uint64_t words __attribute__((vector_size(32), aligned(32), may_alias));

// Sums four streams of each thread's share, as one core reads several faster than one.
static void read_all(void *context, int32_t thread, int32_t n_threads) {
    const job *j = context;
    int32_t begin, end;
    attar_split((int32_t)(j->matrix_bytes * (uint64_t)j->matrices / 64), READ_STREAMS, thread, n_threads, &begin, &end);
    const words *line = (const words *)(const void *)(j->w.data + (size_t)begin * 64);
    const int64_t length = (end - begin) / READ_STREAMS;
    words sums[READ_STREAMS] = {{0}};
    for (int64_t i = 0; i < 2 * length; i += 2, line += 2) {
        for (int k = 0; k < READ_STREAMS; k++) sums[k] += line[2 * k * length] + line[2 * k * length + 1];
    }
    for (int k = 1; k < READ_STREAMS; k++) sums[0] += sums[k];
    j->y[thread] = (float)(sums[0][0] + sums[0][1] + sums[0][2] + sums[0][3]);
}

static void run_peak(void *context, int32_t thread, int32_t n_threads) {
    const job *j = context;
    (void)thread;
    (void)n_threads;
    int8_peak_run(j->kernels->name, PEAK_ROUNDS);
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

// --- results --------------------------------------------------------------------------------------------------

// Giga-bytes and giga-multiply-adds a second, of all threads together.
typedef struct {
    const char *type;
    int32_t bits;  // of the activations; 32: floats
    double gemv_gbs, read_gbs, gemm_gmacs;
} result;

static result bench_type(job j, uint32_t type, int32_t bits) {
    const attar_type_info info = attar_type_get(type);
    j.w = (attar_weight){j.w.data, attar_row_bytes(type, COLS), type, ROWS, COLS};
    j.matrix_bytes = info.integer ? attar_packed_bytes(type, ROWS, COLS) : j.w.row_bytes * ROWS;
    j.matrices = (int32_t)(WEIGHT_BYTES / j.matrix_bytes);
    j.act.bits = bits;
    j.tokens = 1;
    const double bytes = (double)j.matrix_bytes * j.matrices;
    if (info.integer) j.kernels->quantize(j.x, j.act, TOKENS, COLS);
    const double decode = best_seconds(&j, multiply), read = best_seconds(&j, read_all);
    j.matrices = 1;
    j.tokens = TOKENS;
    const double prefill = best_seconds(&j, multiply);
    return (result){info.name, bits, bytes / decode * 1e-9, bytes / read * 1e-9,
                    (double)ROWS * COLS * TOKENS / prefill * 1e-9};
}

static double int8_peak(const job *j, int32_t n_threads) {
    const double macs = (double)int8_peak_run(j->kernels->name, 0) * PEAK_ROUNDS * n_threads;
    return macs == 0 ? 0 : macs / best_seconds(j, run_peak) * 1e-9;
}

static void print_text(result r, double peak) {
    printf("%-6s %4d bits %8.1f GB/s %5.0f %% of %5.1f %10.1f GMAC/s", r.type, r.bits, r.gemv_gbs,
           100 * r.gemv_gbs / r.read_gbs, r.read_gbs, r.gemm_gmacs);
    printf(peak > 0 && r.bits < 32 ? " %5.0f %% of int8 peak\n" : "\n", 100 * r.gemm_gmacs / peak);
    fflush(stdout);
}

static void print_json(result r, bool first) {
    printf("%s\n  {\"type\": \"%s\", \"bits\": %d, \"gemv_gbs\": %.2f, \"read_gbs\": %.2f, \"gemm_gmacs\": %.2f}",
           first ? "" : ",", r.type, r.bits, r.gemv_gbs, r.read_gbs, r.gemm_gmacs);
}

static void bench_table(const job *j, int32_t n_threads, bool json) {
    static const uint32_t types[] = {ATTAR_Q4_0, ATTAR_Q4_1, ATTAR_Q5_0, ATTAR_Q8_0, ATTAR_Q4_K,
                                     ATTAR_Q5_K, ATTAR_Q6_K, ATTAR_F16,  ATTAR_BF16, ATTAR_F32};
    const double peak = int8_peak(j, n_threads);
    bool first = true;
    printf(json ? "{\"kernels\": \"%s\", \"threads\": %d, \"int8_peak_gmacs\": %.2f, \"results\": ["
                : "%s, %d threads, int8 peak %.1f GMAC/s\n",
           j->kernels->name, n_threads, peak);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        const bool integer = attar_type_get(types[i]).integer;
        for (int32_t bits = integer ? 8 : 32; bits <= (integer ? 16 : 32); bits *= 2) {
            const result r = bench_type(*j, types[i], bits);
            if (json)
                print_json(r, first);
            else
                print_text(r, peak);
            first = false;
        }
    }
    if (json) printf("]}\n");
}

int main(int argc, char **argv) {
    const bool json = argc > 1 && strcmp(argv[1], "--json") == 0;
    const int32_t n_threads = argc > 1 + json ? atoi(argv[1 + json]) : attar_usable_cores();
    attar_error error = {0};
    job j = {0};
    if (attar_pool_create(n_threads, &j.pool, &error) != ATTAR_OK) {
        fprintf(stderr, "%s\n", error.message);
        return 2;
    }
    const size_t values = (size_t)TOKENS * COLS;
    j.w.data = allocate(WEIGHT_BYTES);
    float *x = allocate(values * sizeof(float));
    for (size_t i = 0; i < values; i++) x[i] = (float)(i * 2654435761u % 1000) - 500.0f;
    j.x = x;
    j.act = (attar_act){allocate(values * 2), allocate(values / 8), allocate(values / 4), 8};
    j.y = allocate((size_t)TOKENS * ROWS * sizeof(float));
    j.kernels = attar_kernels_choose();
    bench_table(&j, n_threads, json);
    attar_pool_free(j.pool);
    return 0;
}
