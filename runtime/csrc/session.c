#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "forward.h"
#include "key_scales.h"
#include "rope.h"
#include "threads.h"

struct attar_session {
    const attar_model *model;
    const attar_kernels *kernels;
    attar_session_plan plan;
    attar_pool *pool;
    uint8_t *cache_memory, *scratch_memory;
    attar_cache cache;
    attar_scratch scratch;
};

static uint8_t *allocate(uint64_t bytes) {
    return bytes < SIZE_MAX - 63 ? aligned_alloc(64, ((size_t)bytes + 63) / 64 * 64) : NULL;
}

static attar_status allocate_memory(attar_session *s, attar_error *error) {
    s->cache_memory = allocate(s->plan.memory.cache_bytes);
    s->scratch_memory = allocate(s->plan.memory.scratch_bytes);
    if (s->cache_memory && s->scratch_memory) return ATTAR_OK;
    return attar_fail(error, ATTAR_ERROR_MEMORY,
                      "the system refuses %llu bytes for a context of %d tokens; lower n_ctx",
                      (unsigned long long)(s->plan.memory.cache_bytes + s->plan.memory.scratch_bytes), s->plan.n_ctx);
}

attar_status attar_session_create(attar_model *model, const attar_session_params *params, attar_session **out,
                                  attar_error *error) {
    *out = NULL;
    attar_session *s = calloc(1, sizeof *s);
    if (!s) return attar_fail(error, ATTAR_ERROR_MEMORY, "out of memory for a session");
    s->model = model;
    s->kernels = attar_kernels_choose();
    attar_status status = attar_plan_make(model, params, &s->plan, error);
    if (status == ATTAR_OK) status = allocate_memory(s, error);
    if (status == ATTAR_OK) status = attar_pool_create(s->plan.n_threads, &s->pool, error);
    if (status == ATTAR_OK) status = attar_model_load(model, s->pool, error);
    if (status != ATTAR_OK) {
        attar_session_free(s);
        return status;
    }
    attar_scratch_place(model, &s->plan, s->scratch_memory, &s->scratch);
    attar_cache_init(&s->cache, model, s->plan.n_ctx, s->plan.n_batch, s->plan.kv_type, s->cache_memory,
                     s->scratch.cache_layers);
    attar_rope_frequencies(model, s->scratch.inverse_frequencies);
    if (s->plan.kv_type == ATTAR_KV_INT8) attar_key_scales(model, s->scratch.x, s->scratch.key_scales);
    *out = s;
    return ATTAR_OK;
}

void attar_session_free(attar_session *session) {
    if (!session) return;
    attar_pool_free(session->pool);
    free(session->cache_memory);
    free(session->scratch_memory);
    free(session);
}

int32_t attar_session_position(const attar_session *session) { return session->cache.position; }

int32_t attar_session_context(const attar_session *session) { return session->plan.n_ctx; }

// Most positions forgotten at once: the older half of what may be.
static int32_t slide_step(const attar_session_plan *plan) {
    const int32_t half = (plan->n_ctx - plan->n_keep) / 2;
    return half > 0 ? half : 1;
}

static attar_status check_room(const attar_session *s, size_t n, attar_error *error) {
    const attar_session_plan *plan = &s->plan;
    if (plan->overflow == ATTAR_OVERFLOW_SLIDE) {
        if (n <= (size_t)(plan->n_ctx - plan->n_keep)) return ATTAR_OK;
        return attar_fail(error, ATTAR_ERROR_CONTEXT,
                          "%zu tokens do not fit: the context holds %d, of which the first %d are kept; shorten the prompt or "
                          "open the session with a larger n_ctx",
                          n, plan->n_ctx, plan->n_keep);
    }
    if (n <= (size_t)(plan->n_ctx - s->cache.position)) return ATTAR_OK;
    return attar_fail(error, ATTAR_ERROR_CONTEXT,
                      "%zu tokens do not fit: the context holds %d and %d are in use; shorten the prompt or open the session "
                      "with a larger n_ctx",
                      n, plan->n_ctx, s->cache.position);
}

// Refuses before anything changes, so that a failed call leaves the sequence as it was.
static attar_status check_tokens(const attar_session *s, const int32_t *tokens, size_t n, attar_error *error) {
    if (n == 0) return attar_fail(error, ATTAR_ERROR_ARGUMENT, "at least one token must be given");
    for (size_t i = 0; i < n; i++) {
        if (tokens[i] < 0 || tokens[i] >= s->model->n_vocab)
            return attar_fail(error, ATTAR_ERROR_ARGUMENT, "token ids must be 0 to %d, got %d at index %zu",
                              s->model->n_vocab - 1, tokens[i], i);
    }
    return check_room(s, n, error);
}

// Makes room for T more tokens, at most slide_step of them.
static void slide(attar_session *s, int32_t T) {
    if (s->cache.position + T <= s->plan.n_ctx) return;
    attar_cache_slide(&s->cache, s->model, s->kernels, s->scratch.inverse_frequencies, s->plan.n_keep,
                      slide_step(&s->plan), s->scratch.slide_room);
}

// Runs checked tokens in batches. logits: [n, V] if `all`, else [V] after the last token or NULL.
static void run(attar_session *s, const int32_t *tokens, int32_t n, float *logits, bool all) {
    for (int32_t at = 0; at < n;) {
        const int32_t left = n - at, most = s->plan.overflow == ATTAR_OVERFLOW_SLIDE ? slide_step(&s->plan) : n;
        int32_t T = left < s->plan.n_batch ? left : s->plan.n_batch;
        if (T > most) T = most;
        slide(s, T);
        const bool last = T == left;
        attar_step step = {
            .model = s->model,
            .kernels = s->kernels,
            .pool = s->pool,
            .cache = &s->cache,
            .scratch = &s->scratch,
            .tokens = tokens + at,
            .n_tokens = T,
            .position = s->cache.position,
            .logits = all ? logits + (int64_t)at * s->model->n_vocab : logits,
            .n_logits = all ? T : last && logits,
        };
        attar_forward(&step);
        attar_cache_advance(&s->cache, step.position + T);
        at += T;
    }
}

attar_status attar_session_eval(attar_session *session, const int32_t *tokens, size_t n, float *logits,
                                attar_error *error) {
    attar_status status = check_tokens(session, tokens, n, error);
    if (status == ATTAR_OK) run(session, tokens, (int32_t)n, logits, false);
    return status;
}

attar_status attar_session_score(attar_session *session, const int32_t *tokens, size_t n, float *logits,
                                 attar_error *error) {
    attar_status status = check_tokens(session, tokens, n, error);
    if (status == ATTAR_OK) run(session, tokens, (int32_t)n, logits, true);
    return status;
}

attar_status attar_session_rewind(attar_session *session, int32_t position, attar_error *error) {
    if (position < 0 || position > session->cache.position)
        return attar_fail(error, ATTAR_ERROR_ARGUMENT, "a rewind must keep 0 to %d tokens, got %d",
                          session->cache.position, position);
    if (attar_cache_rewind(&session->cache, position)) return ATTAR_OK;
    return attar_fail(error, ATTAR_ERROR_ARGUMENT,
                      "cannot rewind to %d: local layers keep %d positions and reach back to %d; rewind to 0 and read the "
                      "tokens again",
                      position, session->cache.local_rows, attar_cache_oldest(&session->cache));
}

const char *attar_version(void) { return ATTAR_VERSION; }

const char *attar_kernels_name(void) { return attar_kernels_choose()->name; }
