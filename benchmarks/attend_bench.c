// attend_bench: the attention phase alone, beside the memory's read bandwidth.
//
//   attend_bench [threads]
//
// Every layer has its own cache, as in a model, so that long contexts come from memory and short ones from the caches
// of the CPU. Decode: one token at a depth of n keys, through all layers; GB/s of keys and values read, beside a plain
// sum over the same bytes. Prefill: n tokens at once from an empty context; GMAC/s counted over the keys that each
// token sees. Of several runs each layer's best time counts, since other programs can only slow a layer down.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "attention.h"

enum { RUNS = 60, MOST_KEYS = 4096, MOST_TOKENS = 512 };

typedef struct {
    const char *name;
    int32_t n_layers, n_heads, n_kv_heads, head_dim;
} shape;

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint8_t *allocate(size_t bytes) {
    void *memory = NULL;
    if (posix_memalign(&memory, 64, bytes) != 0) {
        fputs("out of memory\n", stderr);
        exit(1);
    }
    memset(memory, 0, bytes);
    return memory;
}

// A model that has attention and nothing else, and what a session holds for it.
typedef struct {
    attar_model model;
    attar_layer *layers;
    attar_family family;
    attar_cache cache;
    attar_scratch scratch;
    uint8_t *cache_memory, *scratch_memory;
    uint64_t cache_bytes;
    uint64_t *sums;  // [threads, 8]
    double *starts;  // [threads, 8] seconds
    double *best;    // [layers] seconds
    attar_step step;
} bench;

static void bench_init(bench *b, const shape *s, attar_pool *pool, attar_kv_type type) {
    *b = (bench){.layers = calloc((size_t)s->n_layers, sizeof *b->layers),
                 .best = calloc((size_t)s->n_layers, sizeof *b->best)};
    b->model = (attar_model){.family = &b->family, .n_embd = 32, .n_ff = 32, .n_layers = s->n_layers,
                             .n_heads = s->n_heads, .n_kv_heads = s->n_kv_heads, .head_dim = s->head_dim,
                             .layers = b->layers, .query_scale = 0.125F, .rms_eps = 1e-5F};
    for (int32_t i = 0; i < s->n_layers; i++) b->layers[i].o.type = ATTAR_Q4_0;
    const attar_session_plan plan = {.n_ctx = MOST_KEYS, .n_threads = attar_pool_size(pool), .n_batch = MOST_TOKENS,
                                     .activation_bits = 8, .kv_type = type};
    b->cache_bytes = attar_cache_bytes(&b->model, plan.n_ctx, plan.n_batch, type);
    b->cache_memory = allocate(b->cache_bytes);
    attar_scratch unplaced;
    b->scratch_memory = allocate(attar_scratch_place(&b->model, &plan, NULL, &unplaced));
    attar_scratch_place(&b->model, &plan, b->scratch_memory, &b->scratch);
    attar_cache_init(&b->cache, &b->model, plan.n_ctx, plan.n_batch, type, b->cache_memory, b->scratch.cache_layers);
    b->sums = (uint64_t *)(void *)allocate((size_t)plan.n_threads * 64);
    b->starts = (double *)(void *)allocate((size_t)plan.n_threads * 64);
    b->step = (attar_step){.model = &b->model, .kernels = attar_kernels_choose(), .pool = pool, .cache = &b->cache,
                           .scratch = &b->scratch};
}

static void bench_free(bench *b) {
    free(b->layers);
    free(b->best);
    free(b->cache_memory);
    free(b->scratch_memory);
    free(b->sums);
    free(b->starts);
}

// Runs one layer's work on every thread, and keeps its time, from the first thread's start, where that is the best.
static void timed(const bench *b, int32_t layer, int32_t thread, int32_t n_threads,
                  void (*work)(const bench *b, int32_t layer, int32_t thread, int32_t n_threads)) {
    attar_pool_barrier(b->step.pool);
    b->starts[thread * 8] = seconds_now();
    work(b, layer, thread, n_threads);
    attar_pool_barrier(b->step.pool);
    if (thread != 0) return;
    double start = b->starts[0];
    for (int32_t i = 1; i < n_threads; i++) start = b->starts[i * 8] < start ? b->starts[i * 8] : start;
    const double spent = seconds_now() - start;
    if (spent < b->best[layer]) b->best[layer] = spent;
}

static void attend_layer(const bench *b, int32_t layer, int32_t thread, int32_t n_threads) {
    attar_attention(&b->step, layer, thread, n_threads);
}

// Sums 64-bit words of the first keys and values of every head; the compiler makes vectors of it.
static void read_layer(const bench *b, int32_t layer, int32_t thread, int32_t n_threads) {
    const int64_t heads = 2 * b->model.n_kv_heads, layer_words = (int64_t)b->cache_bytes / 8 / b->model.n_layers;
    const int64_t words = layer_words / heads;                                     // of one head's keys, or values
    const int64_t used = words * (b->step.position + 1) / b->cache.layers[0].rows;
    uint64_t sum = 0;
    for (int64_t i = thread; i < heads; i += n_threads) {
        const uint8_t *data = b->cache_memory + (layer * layer_words + i * words) * 8;
        for (int64_t w = 0; w < used; w++) {
            uint64_t word;
            memcpy(&word, data + w * 8, 8);
            sum += word;
        }
    }
    b->sums[thread * 8] = sum;
}

static void attend_all(void *context, int32_t thread, int32_t n_threads) {
    const bench *b = context;
    for (int32_t i = 0; i < b->model.n_layers; i++) timed(b, i, thread, n_threads, attend_layer);
}

static void read_all(void *context, int32_t thread, int32_t n_threads) {
    const bench *b = context;
    for (int32_t i = 0; i < b->model.n_layers; i++) timed(b, i, thread, n_threads, read_layer);
}

static double best_seconds(bench *b, attar_task task) {
    for (int32_t i = 0; i < b->model.n_layers; i++) b->best[i] = 1e9;
    for (int run = 0; run < RUNS; run++) attar_pool_run(b->step.pool, task, b);
    double sum = 0;
    for (int32_t i = 0; i < b->model.n_layers; i++) sum += b->best[i];
    return sum;
}

// The step's q, k, v: small waves, so that no weight dominates.
static void fill(float *x, int64_t count) {
    for (int64_t i = 0; i < count; i++) x[i] = (float)(i * 7919 % 1009) / 1009.0F - 0.5F;
}

static void run_step(bench *b, int32_t position, int32_t n_tokens) {
    b->step.position = position;
    b->step.n_tokens = n_tokens;
}

static void report(const shape *s, attar_pool *pool, attar_kv_type type) {
    static const int32_t depths[] = {128, 512, 2048, 4096};
    bench b;
    bench_init(&b, s, pool, type);
    const int64_t T = MOST_TOKENS, H = s->head_dim;
    fill(b.scratch.q, T * s->n_heads * H);
    fill(b.scratch.k, T * s->n_kv_heads * H);
    fill(b.scratch.v, T * s->n_kv_heads * H);
    for (int64_t i = 0; i < 2 * T * H / 2; i++) b.scratch.cosines[i] = 1.0F;
    const int64_t key_scales = type == ATTAR_KV_INT8 ? 2 * H * s->n_layers * s->n_kv_heads : 0;
    for (int64_t i = 0; i < key_scales; i++) b.scratch.key_scales[i] = 1.0F;
    for (int32_t p = 0; p < MOST_KEYS; p += MOST_TOKENS) {  // the cache holds numbers, not zeros
        run_step(&b, p, MOST_TOKENS);
        attar_pool_run(pool, attend_all, &b);
    }
    for (size_t i = 0; i < sizeof depths / sizeof *depths; i++) {
        run_step(&b, depths[i] - 1, 1);
        const double bytes = (double)b.cache_bytes * depths[i] / MOST_KEYS;
        const double decode = best_seconds(&b, attend_all), read = best_seconds(&b, read_all);
        printf("%-8s %-5s %-14s decode %5d %8.3f ms %7.1f GB/s   read alone %7.1f GB/s\n", b.step.kernels->name,
               type == ATTAR_KV_INT8 ? "int8" : "f16", s->name, depths[i], decode * 1e3, bytes / decode * 1e-9,
               bytes / read * 1e-9);
    }
    run_step(&b, 0, MOST_TOKENS);
    const double prefill = best_seconds(&b, attend_all);
    const double macs = (double)(s->n_layers * s->n_heads * H * T * (T + 1));
    printf("%-8s %-5s %-14s prefill %4d %8.3f ms %7.1f GMAC/s\n", b.step.kernels->name,
           type == ATTAR_KV_INT8 ? "int8" : "f16", s->name, MOST_TOKENS, prefill * 1e3, macs / prefill * 1e-9);
    fflush(stdout);
    bench_free(&b);
}

int main(int argc, char **argv) {
    static const shape shapes[] = {{"smollm2-135m", 30, 9, 3, 64}, {"qwen2.5-0.5b", 24, 14, 2, 64},
                                   {"gemma3-270m", 18, 4, 1, 256}};
    attar_error error = {0};
    attar_pool *pool = NULL;
    if (attar_pool_create(argc > 1 ? atoi(argv[1]) : attar_usable_cores(), &pool, &error) != ATTAR_OK) {
        fprintf(stderr, "%s\n", error.message);
        return 2;
    }
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        report(&shapes[i], pool, ATTAR_KV_F16);
        report(&shapes[i], pool, ATTAR_KV_INT8);
    }
    attar_pool_free(pool);
    return 0;
}
