// llama_driver: llama.cpp with as little around it as attar-run --bench has around attar.
//
//   llama_driver bench MODEL THREADS CONTEXT FLASH PREFILL DECODE REPEATS DEPTH...
//   llama_driver likelihood MODEL THREADS WINDOW FLASH     (int32 token ids on stdin)
//   llama_driver quantize SOURCE TARGET FTYPE THREADS
//
// bench prints one line of JSON with the keys of attar-run --bench. The calls are those of llama.cpp's own llama-bench:
// batches of one token for decoding, of at most 512 for a prompt, logits after the last token, nothing sampled; files
// are mapped and weights repacked, as is its default. likelihood prints the mean negative log-likelihood of the ids in
// consecutive windows, each read from an empty context. quantize writes one of llama.cpp's mixtures (15: Q4_K_M).
// Compiled and linked against the headers and libraries that llama-cpp-python installs.
#include <ggml-backend.h>
#include <llama.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BATCH = 512, SCORED_BATCH = 128, MOST_DEPTHS = 8 };

static void fail(const char *what) {
    fprintf(stderr, "llama_driver: %s\n", what);
    exit(1);
}

static void quiet(enum ggml_log_level level, const char *text, void *context) {
    (void)context;
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static double now_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static unsigned long long peak_rss_bytes(void) {
    FILE *status = fopen("/proc/self/status", "r");
    unsigned long long kilobytes = 0;
    char line[256];
    while (status && fgets(line, sizeof line, status) && sscanf(line, "VmHWM: %llu", &kilobytes) != 1) continue;
    if (status) fclose(status);
    return kilobytes * 1024;
}

static void *allocate(size_t count, size_t size) {
    void *memory = calloc(count ? count : 1, size);
    if (!memory) fail("out of memory");
    return memory;
}

typedef struct {
    struct llama_model *model;
    struct llama_context *context;
    int32_t n_vocab;
    double load_seconds;
} peer;

static peer load(const char *path, int32_t threads, int32_t n_ctx, bool flash) {
    const double start = now_seconds();
    peer p = {.model = llama_model_load_from_file(path, llama_model_default_params())};
    if (!p.model) fail("the model cannot be loaded");
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = (uint32_t)n_ctx;
    params.n_batch = params.n_ubatch = BATCH;
    params.n_threads = params.n_threads_batch = threads;
    params.flash_attn_type = flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.swa_full = false;  // local layers keep their window, as attar's do
    p.context = llama_init_from_model(p.model, params);
    if (!p.context) fail("the context cannot be made");
    p.load_seconds = now_seconds() - start;
    p.n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(p.model));
    return p;
}

static void eval(const peer *p, llama_token *ids, int32_t n) {
    for (int32_t at = 0; at < n; at += BATCH) {
        const int32_t count = n - at < BATCH ? n - at : BATCH;
        if (llama_decode(p->context, llama_batch_get_one(ids + at, count)) != 0) fail("llama_decode failed");
    }
    llama_synchronize(p->context);
}

static void clear(const peer *p) { llama_memory_clear(llama_get_memory(p->context), false); }

static void print_speeds(int32_t tokens, const double *seconds, int32_t n) {
    for (int32_t i = 0; i < n; i++) printf("%s%.3f", i ? ", " : "[", tokens / seconds[i]);
    putchar(']');
}

static double time_prefill(const peer *p, llama_token *ids, int32_t n) {
    clear(p);
    const double start = now_seconds();
    eval(p, ids, n);
    return now_seconds() - start;
}

// Decodes after `depth` tokens, which are in the context if `filled`.
static double time_decode(const peer *p, llama_token *ids, int32_t depth, bool filled, int32_t n) {
    if (!filled || depth == 0 || !llama_memory_seq_rm(llama_get_memory(p->context), 0, depth, -1)) {
        clear(p);
        eval(p, ids, depth);
    }
    const double start = now_seconds();
    for (int32_t i = 0; i < n; i++) eval(p, ids + depth + i, 1);
    return now_seconds() - start;
}

static int bench(int argc, char **argv) {
    if (argc < 8) fail("bench takes MODEL THREADS CONTEXT FLASH PREFILL DECODE REPEATS DEPTH...");
    const unsigned long long start_rss = peak_rss_bytes();
    const int32_t threads = atoi(argv[1]), n_ctx = atoi(argv[2]), prefill = atoi(argv[4]), decode = atoi(argv[5]);
    const int32_t repeats = atoi(argv[6]);
    const bool flash = atoi(argv[3]) != 0;
    peer p = load(argv[0], threads, n_ctx, flash);
    llama_token *ids = allocate((size_t)n_ctx, sizeof *ids);
    double *seconds = allocate((size_t)repeats, sizeof *seconds);
    for (int32_t i = 0; i < n_ctx; i++) ids[i] = (llama_token)((7919LL * i + 13) % p.n_vocab);
    printf("{\"threads\": %d, \"context_length\": %u, \"flash_attention\": %s, \"load_seconds\": %.6f, ", threads,
           llama_n_ctx(p.context), flash ? "true" : "false", p.load_seconds);
    if (prefill > 0) {
        for (int32_t i = 0; i < repeats; i++) seconds[i] = time_prefill(&p, ids, prefill);
        printf("\"prefill_tokens\": %d, \"prefill_tokens_per_second\": ", prefill);
        print_speeds(prefill, seconds, repeats);
        printf(", ");
    }
    printf("\"decode_tokens\": %d, \"decode_tokens_per_second\": {", decode);
    for (int32_t d = 7; d < argc; d++) {
        for (int32_t i = 0; i < repeats; i++) seconds[i] = time_decode(&p, ids, atoi(argv[d]), i > 0, decode);
        printf("%s\"%s\": ", d > 7 ? ", " : "", argv[d]);
        print_speeds(decode, seconds, repeats);
    }
    printf("}, \"start_rss_bytes\": %llu, \"peak_rss_bytes\": %llu}\n", start_rss, peak_rss_bytes());
    return 0;
}

static double log_sum_exp(const float *logits, int32_t n) {
    double largest = logits[0], sum = 0;
    for (int32_t i = 1; i < n; i++) largest = logits[i] > largest ? logits[i] : largest;
    for (int32_t i = 0; i < n; i++) sum += exp(logits[i] - largest);
    return largest + log(sum);
}

// Sum of -log p of ids[1..n) after the ids before them.
static double score_window(const peer *p, struct llama_batch *batch, const llama_token *ids, int32_t n) {
    double sum = 0;
    clear(p);
    for (int32_t at = 0; at < n; at += batch->n_tokens) {
        batch->n_tokens = n - at < SCORED_BATCH ? n - at : SCORED_BATCH;
        for (int32_t i = 0; i < batch->n_tokens; i++) {
            batch->token[i] = ids[at + i];
            batch->pos[i] = at + i;
            batch->n_seq_id[i] = 1;
            batch->seq_id[i][0] = 0;
            batch->logits[i] = 1;
        }
        if (llama_decode(p->context, *batch) != 0) fail("llama_decode failed");
        for (int32_t i = 0; i < batch->n_tokens && at + i + 1 < n; i++) {
            const float *logits = llama_get_logits_ith(p->context, i);
            sum += log_sum_exp(logits, p->n_vocab) - logits[ids[at + i + 1]];
        }
    }
    return sum;
}

static int likelihood(int argc, char **argv) {
    if (argc != 4) fail("likelihood takes MODEL THREADS WINDOW FLASH");
    const int32_t window = atoi(argv[2]);
    const peer p = load(argv[0], atoi(argv[1]), window, atoi(argv[3]) != 0);
    struct llama_batch batch = llama_batch_init(SCORED_BATCH, 0, 1);
    llama_token *ids = allocate((size_t)window, sizeof *ids);
    double sum = 0;
    long scored = 0;
    for (size_t n; (n = fread(ids, sizeof *ids, (size_t)window, stdin)) > 1; scored += (long)n - 1)
        sum += score_window(&p, &batch, ids, (int32_t)n);
    printf("{\"mean_nll\": %.9f, \"scored_tokens\": %ld}\n", sum / (double)scored, scored);
    return 0;
}

static int quantize(int argc, char **argv) {
    if (argc != 4) fail("quantize takes SOURCE TARGET FTYPE THREADS");
    struct llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype = (enum llama_ftype)atoi(argv[2]);
    params.nthread = atoi(argv[3]);
    if (llama_model_quantize(argv[0], argv[1], &params) != 0) fail("llama_model_quantize failed");
    return 0;
}

int main(int argc, char **argv) {
    llama_log_set(quiet, NULL);
    ggml_backend_load_all();
    llama_backend_init();
    if (argc > 1 && strcmp(argv[1], "bench") == 0) return bench(argc - 2, argv + 2);
    if (argc > 1 && strcmp(argv[1], "likelihood") == 0) return likelihood(argc - 2, argv + 2);
    if (argc > 1 && strcmp(argv[1], "quantize") == 0) return quantize(argc - 2, argv + 2);
    fail("the first argument must be bench, likelihood or quantize");
}
