// attar-run: completes a prompt with a GGUF model. Text goes to stdout as it is made, everything else to stderr.
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "attar.h"
#include "attar_run_bench.h"

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

static const char HELP[] =
    "usage: attar-run MODEL.gguf -p PROMPT [options]\n"
    "       attar-run MODEL.gguf --bench [options]\n"
    "\n"
    "Completes PROMPT and streams the text to stdout; timings go to stderr. With --bench, measures load, prefill,\n"
    "decode and memory instead, and prints one line of JSON.\n"
    "\n"
    "  -p, --prompt TEXT   text to complete; control tokens such as <|im_end|> are recognised in it\n"
    "  -n, --tokens N      most tokens to make (default 128)\n"
    "      --temp X        temperature; 0, the default, always takes the likeliest token\n"
    "      --top-k N       sample from the N likeliest tokens; 0, the default, from all\n"
    "      --top-p X       sample from the likeliest tokens that make up X of the probability (default 1)\n"
    "      --min-p X       drop tokens less likely than X times the likeliest (default 0)\n"
    "      --seed N        seed of the sampling (default 0)\n"
    "      --ctx N         context length in tokens (default: the model's, at most 4096)\n"
    "      --batch N       prompt tokens run at once (default 256)\n"
    "      --threads N     threads (default: usable cores)\n"
    "      --memory MB     refuse to run if weights, cache and scratch need more than MB million bytes\n"
    "      --activation-bits N  8, the default, is fast; 16 gives nearly the logits of float arithmetic\n"
    "      --kv TYPE       cache keys and values as f16, the default, or int8: half the size, faster in long contexts\n"
    "      --overflow WHAT when the context is full: refuse, the default, or slide, forgetting the older half\n"
    "      --keep N        of slide: first tokens never forgotten (default 0)\n"
    "      --special       print control tokens too\n"
    "  -q, --quiet         no timings\n"
    "      --version       print the version and the kernels chosen for this CPU\n"
    "  -h, --help          print this text\n"
    "\n"
    "of --bench, where -n is the tokens made at each depth:\n"
    "      --prefill N     tokens of the prompt whose reading is timed (default 512; 0: none)\n"
    "      --depth N       tokens in the context before decoding; may be given up to 8 times (default 0)\n"
    "      --repeat N      takes of each figure, all of which are printed (default 3)\n"
    "\n"
    "exit status: 0 done, 1 the model or the request was refused, 2 wrong usage\n";

typedef struct {
    const char *model, *prompt;
    int32_t n_tokens;
    attar_session_params session;
    attar_sampler_params sampler;
    uint64_t seed;
    bench_plan bench;
    bool special, quiet, measure, done;
} options;

static bool usage_error(const char *what, const char *value) {
    fprintf(stderr, "attar-run: %s: %s; see attar-run --help\n", what, value);
    return false;
}

static bool parse_number(const char *name, const char *text, double low, double high, bool whole, double *out) {
    char *end;
    errno = 0;
    *out = strtod(text, &end);
    if (end != text && *end == '\0' && errno == 0 && *out >= low && *out <= high && (!whole || *out == floor(*out)))
        return true;
    fprintf(stderr, "attar-run: %s must be a%s number from %.10g to %.10g, got \"%s\"\n", name, whole ? " whole" : "",
            low, high, text);
    return false;
}

// A word of two; false, and a message, if it is neither.
static bool parse_choice(const char *name, const char *text, const char *first, const char *second, int32_t *out) {
    *out = strcmp(text, second) == 0;
    if (*out || strcmp(text, first) == 0) return true;
    fprintf(stderr, "attar-run: %s must be %s or %s, got \"%s\"\n", name, first, second, text);
    return false;
}

static bool parse_depth(bench_plan *plan, const char *text) {
    double value;
    if (plan->n_depths == BENCH_MOST_DEPTHS) return usage_error("--depth is given more than 8 times", text);
    if (!parse_number("--depth", text, 0, INT32_MAX / 2, true, &value)) return false;
    plan->depths[plan->n_depths++] = (int32_t)value;
    return true;
}

static bool parse_value(options *o, const char *name, const char *text) {
    typedef struct {
        const char *name, *shorter;
        double low, high;
        int32_t *integer;
        float *real;
    } numeric;
    const numeric table[] = {
        {"--tokens", "-n", 0, INT32_MAX, &o->n_tokens, NULL},
        {"--temp", "", 0, 1e6, NULL, &o->sampler.temperature},
        {"--top-k", "", 0, INT32_MAX, &o->sampler.top_k, NULL},
        {"--top-p", "", 1e-6, 1, NULL, &o->sampler.top_p},
        {"--min-p", "", 0, 1, NULL, &o->sampler.min_p},
        {"--ctx", "", 1, INT32_MAX, &o->session.n_ctx, NULL},
        {"--batch", "", 1, INT32_MAX, &o->session.n_batch, NULL},
        {"--threads", "", 1, INT32_MAX, &o->session.n_threads, NULL},
        {"--keep", "", 0, INT32_MAX, &o->session.n_keep, NULL},
        {"--prefill", "", 0, INT32_MAX / 2, &o->bench.prefill_tokens, NULL},
        {"--repeat", "", 1, 1000, &o->bench.repeats, NULL},
    };
    double value;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        const numeric *entry = &table[i];
        if (strcmp(name, entry->name) != 0 && strcmp(name, entry->shorter) != 0) continue;
        if (!parse_number(name, text, entry->low, entry->high, entry->integer != NULL, &value)) return false;
        if (entry->integer)
            *entry->integer = (int32_t)value;
        else
            *entry->real = (float)value;
        return true;
    }
    if (strcmp(name, "--prompt") == 0 || strcmp(name, "-p") == 0) {
        o->prompt = text;
        return true;
    }
    if (strcmp(name, "--kv") == 0) return parse_choice(name, text, "f16", "int8", &o->session.kv_type);
    if (strcmp(name, "--overflow") == 0) return parse_choice(name, text, "refuse", "slide", &o->session.overflow);
    if (strcmp(name, "--activation-bits") == 0) {
        int32_t precise = 0;
        if (!parse_choice(name, text, "8", "16", &precise)) return false;
        o->session.activation_bits = precise ? 16 : 8;
        return true;
    }
    if (strcmp(name, "--depth") == 0) return parse_depth(&o->bench, text);
    if (strcmp(name, "--seed") == 0) {
        if (!parse_number(name, text, 0, 0x1p53, true, &value)) return false;
        o->seed = (uint64_t)value;
        return true;
    }
    if (strcmp(name, "--memory") == 0) {
        if (!parse_number(name, text, 1, 1e9, false, &value)) return false;
        o->session.memory_budget = (uint64_t)(value * 1e6);
        return true;
    }
    return usage_error("unknown option", name);
}

// Options that take no value; false if `name` is none of them.
static bool parse_flag(options *o, const char *name) {
    if (strcmp(name, "--special") == 0) {
        o->special = true;
    } else if (strcmp(name, "--quiet") == 0 || strcmp(name, "-q") == 0) {
        o->quiet = true;
    } else if (strcmp(name, "--bench") == 0) {
        o->measure = true;
    } else if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) {
        fputs(HELP, stdout);
        o->done = true;
    } else if (strcmp(name, "--version") == 0) {
        printf("attar %s, %s kernels\n", attar_version(), attar_kernels_name());
        o->done = true;
    } else {
        return false;
    }
    return true;
}

static bool parse_options(options *o, int argc, char **argv) {
    for (int i = 1; i < argc && !o->done; i++) {
        if (argv[i][0] != '-') {
            if (o->model) return usage_error("only one model is run", argv[i]);
            o->model = argv[i];
        } else if (!parse_flag(o, argv[i])) {
            if (i + 1 == argc) return usage_error("unknown option, or its value is missing", argv[i]);
            if (!parse_value(o, argv[i], argv[i + 1])) return false;
            i++;
        }
    }
    if (o->done) return true;
    if (!o->model) return usage_error("missing argument", "MODEL.gguf");
    return o->prompt || o->measure ? true : usage_error("missing option", "--prompt or --bench");
}

static double now_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

// Everything a run holds; freed in one place.
typedef struct {
    attar_model *model;
    attar_tokenizer *tokenizer;
    attar_session *session;
    attar_sampler *sampler;
    attar_model_info info;
    int32_t *ids;  // [n_ids] the prompt
    size_t n_ids;
    float *logits;  // [n_vocab]
} runner;

static void runner_free(runner *r) {
    attar_sampler_free(r->sampler);
    attar_session_free(r->session);
    attar_tokenizer_free(r->tokenizer);
    attar_model_free(r->model);
    free(r->ids);
    free(r->logits);
}

static attar_status encode_prompt(runner *r, const options *o, attar_error *error) {
    // A token covers at least one byte, except for BOS, EOS and a leading blank.
    const size_t length = strlen(o->prompt), capacity = length + 8;
    r->ids = malloc(capacity * sizeof *r->ids);
    r->logits = malloc((size_t)r->info.n_vocab * sizeof *r->logits);
    if (!r->ids || !r->logits) {
        snprintf(error->message, sizeof error->message, "out of memory");
        return ATTAR_ERROR_MEMORY;
    }
    attar_status status =
        attar_tokenizer_encode(r->tokenizer, o->prompt, length, true, true, r->ids, capacity, &r->n_ids, error);
    if (status == ATTAR_OK && r->n_ids == 0) {
        snprintf(error->message, sizeof error->message,
                 "the prompt has no tokens and this model has no BOS to begin with");
        status = ATTAR_ERROR_ARGUMENT;
    }
    return status;
}

static attar_status runner_open(runner *r, const options *o, attar_error *error) {
    attar_status status = attar_model_open(o->model, &r->model, error);
    if (status != ATTAR_OK) return status;
    attar_model_get_info(r->model, &r->info);
    status = attar_tokenizer_create(r->model, &r->tokenizer, error);
    if (status == ATTAR_OK) status = attar_session_create(r->model, &o->session, &r->session, error);
    if (status == ATTAR_OK) status = attar_sampler_create(r->info.n_vocab, &o->sampler, o->seed, &r->sampler, error);
    if (status == ATTAR_OK) status = encode_prompt(r, o, error);
    return status;
}

// Streams tokens until one ends the text, the number asked for is made or the context is full.
static attar_status generate(runner *r, const options *o, int32_t *made, attar_error *error) {
    attar_status status = ATTAR_OK;
    for (*made = 0; *made < o->n_tokens; ++*made) {
        const int32_t id = attar_sampler_draw(r->sampler, r->logits);
        if (attar_tokenizer_is_end(r->tokenizer, id)) break;
        size_t length = 0;
        const char *piece = attar_tokenizer_piece(r->tokenizer, id, o->special, &length);
        if (piece) fwrite(piece, 1, length, stdout);
        if (fflush(stdout) != 0) {
            snprintf(error->message, sizeof error->message, "cannot write to stdout: %s", strerror(errno));
            return ATTAR_ERROR_IO;
        }
        if (o->session.overflow == ATTAR_OVERFLOW_REFUSE &&
            attar_session_position(r->session) == attar_session_context(r->session)) {
            fprintf(stderr, "\nattar-run: the context of %d tokens is full\n", attar_session_context(r->session));
            ++*made;
            break;
        }
        status = attar_session_eval(r->session, &id, 1, r->logits, error);
        if (status != ATTAR_OK) break;
    }
    return status;
}

static void print_timings(const runner *r, double start, double loaded, double read, double end, int32_t made) {
    fprintf(stderr, "\nload %.0f ms; prompt %zu tokens, %.1f tokens/s; decode %d tokens, %.1f tokens/s; %s kernels\n",
            (loaded - start) * 1e3, r->n_ids, (double)r->n_ids / (read - loaded), made,
            made > 0 ? made / (end - read) : 0.0, attar_kernels_name());
}

static attar_status complete(runner *r, const options *o, attar_error *error) {
    const double start = now_seconds();
    attar_status status = runner_open(r, o, error);
    const double loaded = now_seconds();
    if (status == ATTAR_OK) status = attar_session_eval(r->session, r->ids, r->n_ids, r->logits, error);
    const double read = now_seconds();
    int32_t made = 0;
    if (status == ATTAR_OK) status = generate(r, o, &made, error);
    if (status != ATTAR_OK) return status;
    fputc('\n', stdout);
    if (!o->quiet) print_timings(r, start, loaded, read, now_seconds(), made);
    return fflush(stdout) == 0 ? ATTAR_OK : ATTAR_ERROR_IO;
}

static attar_status run_prompt(const options *o, attar_error *error) {
    runner r = {0};
    const attar_status status = complete(&r, o, error);
    runner_free(&r);
    return status;
}

static attar_status run_bench(const options *o, attar_error *error) {
    bench_plan plan = o->bench;
    plan.decode_tokens = o->n_tokens;
    return bench_run(o->model, o->session, plan, stdout, error);
}

int main(int argc, char **argv) {
    options o = {.n_tokens = 128, .sampler = {.top_p = 1.0F}, .bench = {.prefill_tokens = 512, .repeats = 3}};
    if (!parse_options(&o, argc, argv)) return EXIT_USAGE;
    if (o.done) return EXIT_OK;
    attar_error error = {0};
    const attar_status status = o.measure ? run_bench(&o, &error) : run_prompt(&o, &error);
    if (status != ATTAR_OK) fprintf(stderr, "attar-run: %s\n", error.message);
    return status == ATTAR_OK ? EXIT_OK : EXIT_FAILED;
}
