#include "attar_run_bench.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

typedef struct {
    bench_plan plan;
    attar_session_params params;
    attar_model *model;
    attar_tokenizer *tokenizer;
    attar_session *session;
    attar_model_info info;
    attar_memory memory;
    int32_t *ids;   // [n_ctx] the same for every run: speed does not depend on their meaning
    float *logits;  // [n_vocab]
    double load_seconds;
    double *prefill;  // [repeats] seconds
    double *decode;   // [n_depths, repeats] seconds
    uint64_t start_rss;
} bench;

static double now_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

// The most memory this process ever held. Linux's ru_maxrss starts from the size of the process that called exec, so
// the figure of this program alone is read where the system keeps it.
static uint64_t peak_rss_bytes(void) {
    FILE *status = fopen("/proc/self/status", "r");
    unsigned long long kilobytes = 0;
    char line[256];
    while (status && fgets(line, sizeof line, status) && sscanf(line, "VmHWM: %llu", &kilobytes) != 1) continue;
    if (status) fclose(status);
    if (kilobytes > 0) return kilobytes * 1024;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
#ifdef __APPLE__
    return (uint64_t)usage.ru_maxrss;
#else
    return (uint64_t)usage.ru_maxrss * 1024;
#endif
}

static int32_t needed_context(const bench_plan *plan) {
    int32_t needed = plan->prefill_tokens;
    for (int32_t i = 0; i < plan->n_depths; i++) {
        const int32_t end = plan->depths[i] + plan->decode_tokens;
        needed = end > needed ? end : needed;
    }
    return needed > 0 ? needed : 1;
}

// What an application waits for before it can read its first prompt: weights, vocabulary, cache.
static attar_status load(bench *b, const char *path, attar_error *error) {
    const double start = now_seconds();
    attar_status status = attar_model_open(path, &b->model, error);
    if (status == ATTAR_OK) status = attar_tokenizer_create(b->model, &b->tokenizer, error);
    if (status == ATTAR_OK) status = attar_session_create(b->model, &b->params, &b->session, error);
    b->load_seconds = now_seconds() - start;
    if (status == ATTAR_OK) status = attar_plan(b->model, &b->params, &b->memory, error);
    return status;
}

static attar_status make_room(bench *b, attar_error *error) {
    attar_model_get_info(b->model, &b->info);
    const size_t n_ctx = (size_t)attar_session_context(b->session), takes = (size_t)b->plan.repeats;
    b->ids = malloc(n_ctx * sizeof *b->ids);
    b->logits = malloc((size_t)b->info.n_vocab * sizeof *b->logits);
    b->prefill = malloc(takes * sizeof *b->prefill);
    b->decode = malloc(takes * (size_t)b->plan.n_depths * sizeof *b->decode);
    if (!b->ids || !b->logits || !b->prefill || !b->decode) {
        snprintf(error->message, sizeof error->message, "out of memory");
        return error->status = ATTAR_ERROR_MEMORY;
    }
    for (size_t i = 0; i < n_ctx; i++) b->ids[i] = (int32_t)((7919 * i + 13) % (size_t)b->info.n_vocab);
    return ATTAR_OK;
}

static attar_status time_prefill(bench *b, double *seconds, attar_error *error) {
    attar_status status = attar_session_rewind(b->session, 0, error);
    const double start = now_seconds();
    if (status == ATTAR_OK)
        status = attar_session_eval(b->session, b->ids, (size_t)b->plan.prefill_tokens, b->logits, error);
    *seconds = now_seconds() - start;
    return status;
}

// Brings the context to `depth` tokens; a local layer's ring that has moved on is filled again.
static attar_status fill(bench *b, int32_t depth, attar_error *error) {
    attar_error ignored = {0};
    if (attar_session_position(b->session) >= depth && attar_session_rewind(b->session, depth, &ignored) == ATTAR_OK)
        return ATTAR_OK;
    const attar_status status = attar_session_rewind(b->session, 0, error);
    return status == ATTAR_OK ? attar_session_eval(b->session, b->ids, (size_t)depth, NULL, error) : status;
}

static attar_status time_decode(bench *b, int32_t depth, double *seconds, attar_error *error) {
    attar_status status = fill(b, depth, error);
    const double start = now_seconds();
    for (int32_t i = 0; status == ATTAR_OK && i < b->plan.decode_tokens; i++)
        status = attar_session_eval(b->session, b->ids + depth + i, 1, b->logits, error);
    *seconds = now_seconds() - start;
    return status;
}

static attar_status measure(bench *b, attar_error *error) {
    const bench_plan *plan = &b->plan;
    attar_status status = ATTAR_OK;
    for (int32_t i = 0; plan->prefill_tokens > 0 && status == ATTAR_OK && i < plan->repeats; i++)
        status = time_prefill(b, &b->prefill[i], error);
    for (int32_t d = 0; d < plan->n_depths; d++) {
        // From an empty context, since a ring may not hold what a shallower depth needs.
        if (status == ATTAR_OK) status = attar_session_rewind(b->session, 0, error);
        for (int32_t i = 0; status == ATTAR_OK && i < plan->repeats; i++)
            status = time_decode(b, plan->depths[d], &b->decode[d * plan->repeats + i], error);
    }
    return status;
}

// "[1.5, 2.5]": tokens a second of every take.
static void print_speeds(FILE *out, int32_t tokens, const double *seconds, int32_t n) {
    for (int32_t i = 0; i < n; i++) fprintf(out, "%s%.3f", i ? ", " : "[", tokens / seconds[i]);
    fputc(']', out);
}

static void print_json(const bench *b, FILE *out) {
    const bench_plan *plan = &b->plan;
    fprintf(out, "{\"version\": \"%s\", \"kernels\": \"%s\", \"threads\": %d, ", attar_version(), attar_kernels_name(),
            b->params.n_threads);
    fprintf(out, "\"context_length\": %d, \"activation_bits\": %d, \"cache_type\": \"%s\", ",
            attar_session_context(b->session), b->params.activation_bits ? b->params.activation_bits : 8,
            b->params.kv_type == ATTAR_KV_INT8 ? "int8" : "f16");
    fprintf(out, "\"file_bytes\": %llu, \"weight_bytes\": %llu, \"cache_bytes\": %llu, \"scratch_bytes\": %llu, ",
            (unsigned long long)b->info.file_bytes, (unsigned long long)b->memory.weight_bytes,
            (unsigned long long)b->memory.cache_bytes, (unsigned long long)b->memory.scratch_bytes);
    fprintf(out, "\"load_seconds\": %.6f, ", b->load_seconds);
    if (plan->prefill_tokens > 0) {
        fprintf(out, "\"prefill_tokens\": %d, \"prefill_tokens_per_second\": ", plan->prefill_tokens);
        print_speeds(out, plan->prefill_tokens, b->prefill, plan->repeats);
        fputs(", ", out);
    }
    fprintf(out, "\"decode_tokens\": %d, \"decode_tokens_per_second\": {", plan->decode_tokens);
    for (int32_t d = 0; plan->decode_tokens > 0 && d < plan->n_depths; d++) {
        fprintf(out, "%s\"%d\": ", d ? ", " : "", plan->depths[d]);
        print_speeds(out, plan->decode_tokens, b->decode + d * plan->repeats, plan->repeats);
    }
    fprintf(out, "}, \"start_rss_bytes\": %llu, \"peak_rss_bytes\": %llu}\n", (unsigned long long)b->start_rss,
            (unsigned long long)peak_rss_bytes());
}

attar_status bench_run(const char *path, attar_session_params session, bench_plan plan, FILE *out, attar_error *error) {
    if (plan.n_depths == 0) plan.depths[plan.n_depths++] = 0;
    if (session.n_ctx == 0) session.n_ctx = needed_context(&plan);
    bench b = {.plan = plan, .params = session, .start_rss = peak_rss_bytes()};
    attar_status status = load(&b, path, error);
    if (status == ATTAR_OK) status = make_room(&b, error);
    if (status == ATTAR_OK) status = measure(&b, error);
    if (status == ATTAR_OK) print_json(&b, out);
    attar_session_free(b.session);
    attar_tokenizer_free(b.tokenizer);
    attar_model_free(b.model);
    free(b.ids);
    free(b.logits);
    free(b.prefill);
    free(b.decode);
    return status;
}
