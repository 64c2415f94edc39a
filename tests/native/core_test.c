// core_test MODEL.gguf SCRATCH.gguf: drives the loader, sessions and samplers, for running under sanitizers.
// Exits 1 on a failure. SCRATCH.gguf is overwritten by damaged copies of the model.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attar.h"
#include "check.h"

enum { N_TOKENS = 60, N_CONTEXT = 96, N_DAMAGED = 4000, HEAD_BYTES = 3072 };

typedef struct {
    attar_model *model;
    attar_model_info info;
    int32_t tokens[N_TOKENS];
} fixture;

static bool open_fixture(const char *path, fixture *f) {
    attar_error error = {0};
    if (attar_model_open(path, &f->model, &error) != ATTAR_OK) {
        fprintf(stderr, "%s\n", error.message);
        return false;
    }
    attar_model_get_info(f->model, &f->info);
    uint64_t state = 1;
    for (int32_t i = 0; i < N_TOKENS; i++) f->tokens[i] = (int32_t)(next_random(&state) % (uint64_t)f->info.n_vocab);
    return true;
}

// Logits [N_TOKENS, V] after each token: some by prompt batches, some one by one, some read twice after a rewind.
static float *score(check *c, const fixture *f, int32_t n_threads, int32_t n_batch) {
    const attar_session_params params = {.n_ctx = N_CONTEXT, .n_threads = n_threads, .n_batch = n_batch};
    const size_t V = (size_t)f->info.n_vocab;
    float *logits = new_floats(N_TOKENS * V);
    attar_session *session = NULL;
    attar_error error = {0};
    SUBJECT(c, "%d threads, batches of %d", n_threads, n_batch);
    EXPECT(c, attar_session_create(f->model, &params, &session, &error) == ATTAR_OK, "%s", error.message);
    if (!session) return logits;
    EXPECT(c, attar_session_score(session, f->tokens, 50, logits, &error) == ATTAR_OK, "%s", error.message);
    for (int32_t i = 50; i < N_TOKENS; i++)
        EXPECT(c, attar_session_eval(session, f->tokens + i, 1, logits + (size_t)i * V, &error) == ATTAR_OK, "%s",
               error.message);
    EXPECT(c, attar_session_rewind(session, N_TOKENS - 1, &error) == ATTAR_OK, "%s", error.message);
    float *again = new_floats(V);
    EXPECT(c, attar_session_eval(session, f->tokens + N_TOKENS - 1, 1, again, &error) == ATTAR_OK, "%s", error.message);
    EXPECT(c, memcmp(again, logits + (N_TOKENS - 1) * V, V * sizeof *again) == 0, "rewound logits differ");
    free(again);
    attar_session_free(session);
    return logits;
}

static void test_threads(check *c, const fixture *f) {
    const size_t bytes = (size_t)f->info.n_vocab * N_TOKENS * sizeof(float);
    float *one = score(c, f, 1, 7);
    for (int32_t n_threads = 2; n_threads <= 4; n_threads++) {
        float *many = score(c, f, n_threads, 7);
        EXPECT(c, memcmp(one, many, bytes) == 0, "logits differ from those of one thread");
        free(many);
    }
    free(score(c, f, 2, 64));
    free(one);
}

static void test_refusals(check *c, const fixture *f) {
    const attar_session_params params = {.n_ctx = 8, .n_threads = 1};
    const int32_t wrong[] = {0, f->info.n_vocab};
    attar_session *session = NULL;
    attar_error error = {0};
    SUBJECT(c, "refusals");
    EXPECT(c, attar_session_create(f->model, &params, &session, &error) == ATTAR_OK, "%s", error.message);
    EXPECT(c, attar_session_eval(session, wrong, 2, NULL, &error) == ATTAR_ERROR_ARGUMENT, "id outside the vocabulary");
    EXPECT(c, attar_session_eval(session, f->tokens, 9, NULL, &error) == ATTAR_ERROR_CONTEXT, "context");
    EXPECT(c, error.status == ATTAR_ERROR_ARGUMENT, "the first error wins");
    EXPECT(c, attar_session_eval(session, f->tokens, 8, NULL, NULL) == ATTAR_OK, "NULL logits and error");
    EXPECT(c, attar_session_rewind(session, 9, NULL) == ATTAR_ERROR_ARGUMENT, "rewind forward");
    attar_session_free(session);
    const attar_session_params tight = {.n_ctx = 8, .memory_budget = 1};
    EXPECT(c, attar_session_create(f->model, &tight, &session, NULL) == ATTAR_ERROR_MEMORY, "budget");
    EXPECT(c, session == NULL, "no session on failure");
}

static void test_sampler(check *c) {
    enum { V = 1000 };
    const attar_sampler_params settings[] = {{0, 0, 1, 0}, {1, 0, 1, 0}, {0.7F, 40, 0.9F, 0.05F}, {2, 0, 0.5F, 0}};
    float *logits = new_floats(V);
    uint64_t state = 3;
    fill_floats(&state, logits, V, -4.0F, 4.0F);
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
        attar_sampler *sampler = NULL;
        SUBJECT(c, "sampler %zu", i);
        EXPECT(c, attar_sampler_create(V, &settings[i], 9, &sampler, NULL) == ATTAR_OK, "create");
        for (int32_t n = 0; n < 50; n++) {
            const int32_t id = attar_sampler_draw(sampler, logits);
            EXPECT(c, id >= 0 && id < V, "got %d", id);
        }
        attar_sampler_free(sampler);
    }
    free(logits);
}

// --- damaged files ------------------------------------------------------------------------------------------------

typedef struct {
    uint8_t *bytes;
    size_t size;
} content;

static content read_content(const char *path) {
    content file = {NULL, 0};
    FILE *stream = fopen(path, "rb");
    if (!stream) return file;
    fseek(stream, 0, SEEK_END);
    file.size = (size_t)ftell(stream);
    rewind(stream);
    file.bytes = new_items(file.size, 1);
    if (fread(file.bytes, 1, file.size, stream) != file.size) file.size = 0;
    fclose(stream);
    return file;
}

// Overwrites one to four places of the first `head` bytes by values that break counts, lengths and types.
static void damage(uint64_t *state, uint8_t *bytes, size_t head) {
    static const uint64_t values[] = {0, 1, 8, 9, 255, 65536, UINT32_MAX, INT64_MAX, UINT64_MAX, UINT64_C(1) << 61};
    const uint64_t places = 1 + next_random(state) % 4;
    for (uint64_t i = 0; i < places; i++) {
        const size_t at = next_random(state) % (head - 8);
        const uint64_t value = values[next_random(state) % (sizeof values / sizeof *values)];
        memcpy(bytes + at, &value, next_random(state) % 3 == 0 ? 8 : next_random(state) % 2 == 0 ? 4 : 1);
    }
}

// Opens a damaged file; what opens must also run.
static bool try_file(check *c, const char *path) {
    attar_error error = {0};
    fixture f;
    if (attar_model_open(path, &f.model, &error) != ATTAR_OK) {
        EXPECT(c, error.message[0] != '\0' && !strchr(error.message, '\n'), "message \"%s\"", error.message);
        return false;
    }
    const attar_session_params params = {.n_ctx = 4, .n_threads = 1, .memory_budget = 64 << 20};
    const int32_t tokens[] = {0, 0, 0};
    attar_session *session = NULL;
    attar_model_get_info(f.model, &f.info);
    if (attar_session_create(f.model, &params, &session, &error) == ATTAR_OK) {
        float *logits = new_floats((size_t)f.info.n_vocab);
        EXPECT(c, attar_session_eval(session, tokens, 3, logits, &error) == ATTAR_OK, "%s", error.message);
        free(logits);
    }
    attar_session_free(session);
    attar_tokenizer *tokenizer = NULL;
    if (attar_tokenizer_create(f.model, &tokenizer, NULL) == ATTAR_OK) attar_tokenizer_free(tokenizer);
    attar_model_free(f.model);
    return true;
}

static bool overwrite(const char *path, const char *mode, const uint8_t *bytes, size_t n) {
    FILE *stream = fopen(path, mode);
    if (!stream) return false;
    const bool written = fwrite(bytes, 1, n, stream) == n;
    return fclose(stream) == 0 && written;
}

static void test_damaged(check *c, const char *model, const char *scratch) {
    content file = read_content(model);
    uint8_t *head = new_items(HEAD_BYTES, 1);
    uint64_t state = 7;
    int32_t opened = 0;
    EXPECT(c, file.size > HEAD_BYTES && overwrite(scratch, "wb", file.bytes, file.size), "cannot write %s", scratch);
    for (int32_t i = 0; i < N_DAMAGED && c->failures == 0; i++) {
        SUBJECT(c, "damaged file %d", i);
        memcpy(head, file.bytes, HEAD_BYTES);
        damage(&state, head, HEAD_BYTES);
        EXPECT(c, overwrite(scratch, "r+b", head, HEAD_BYTES), "cannot write %s", scratch);
        opened += try_file(c, scratch);
    }
    printf("%d damaged files, %d still a model\n", N_DAMAGED, opened);
    free(head);
    free(file.bytes);
}

int main(int argc, char **argv) {
    fixture f = {0};
    check c = {0};
    if (argc != 3) {
        fputs("usage: core_test MODEL.gguf SCRATCH.gguf\n", stderr);
        return 2;
    }
    if (!open_fixture(argv[1], &f)) return 1;
    test_threads(&c, &f);
    test_refusals(&c, &f);
    attar_model_free(f.model);
    test_sampler(&c);
    test_damaged(&c, argv[1], argv[2]);
    printf("%d failures\n", c.failures);
    return c.failures != 0;
}
