#include "attention.h"

#include <math.h>
#include <string.h>

// One layer's part of a step.
typedef struct {
    const attar_step *step;
    const attar_layer *layer;
    const attar_cache_layer *cache;
    int32_t thread, n_threads;
    int32_t H, N, K, G;
} attention;

int64_t attar_rope_at(const attar_step *step, bool local, int32_t t) {
    const int32_t half = step->model->head_dim / 2;
    // Both kinds lie one after the other, each as long as this step.
    return ((int64_t)local * step->n_tokens + t) * half;
}

// --- queries, keys and values of this step ------------------------------------------------------------------------

// Norm, then rotation, of one head x [H] of token t.
static void turn(const attention *a, float *x, const float *norm, int32_t t) {
    const attar_kernels *kernels = a->step->kernels;
    const attar_scratch *scratch = a->step->scratch;
    const int64_t at = attar_rope_at(a->step, a->layer->local, t);
    if (norm) kernels->rms_norm(x, norm, x, a->H, a->step->model->rms_eps);
    kernels->rope(x, scratch->cosines + at, scratch->sines + at, a->H, a->step->model->family->interleaved_rope);
}

static void prepare_query(const attention *a, int32_t t, int32_t head) {
    const attar_kernels *kernels = a->step->kernels;
    float *q = a->step->scratch->q + ((int64_t)t * a->N + head) * a->H;  // [H]
    if (a->layer->q_bias) kernels->add(q, a->layer->q_bias + head * a->H, a->H);
    turn(a, q, a->layer->q_norm, t);
    kernels->scale(q, a->step->model->query_scale, a->H);
}

// Writes the cache rows of one KV head of token t.
static void store_key_value(const attention *a, int32_t t, int32_t kv) {
    const attar_kernels *kernels = a->step->kernels;
    const int64_t at = ((int64_t)t * a->K + kv) * a->H;
    float *k = a->step->scratch->k + at, *v = a->step->scratch->v + at;  // [H]
    if (a->layer->k_bias) kernels->add(k, a->layer->k_bias + kv * a->H, a->H);
    if (a->layer->v_bias) kernels->add(v, a->layer->v_bias + kv * a->H, a->H);
    turn(a, k, a->layer->k_norm, t);
    const int64_t row = attar_cache_row(a->cache, a->step->model, kv, a->step->position + t);
    kernels->f32_to_f16(k, a->cache->k + row, a->H);
    kernels->f32_to_f16(v, a->cache->v + row, a->H);
}

static void prepare(const attention *a) {
    const int32_t heads = a->N + a->K;
    int32_t begin, end;
    attar_split(a->step->n_tokens * heads, 1, a->thread, a->n_threads, &begin, &end);
    for (int32_t i = begin; i < end; i++) {
        const int32_t t = i / heads, head = i % heads;
        if (head < a->N)
            prepare_query(a, t, head);
        else
            store_key_value(a, t, head - a->N);
    }
}

// --- attention ----------------------------------------------------------------------------------------------------

// The first position that the query at position p sees.
static int32_t first_key(const attention *a, int32_t p) {
    const int32_t first = p + 1 - a->step->model->sliding_window;
    return a->layer->local && first > 0 ? first : 0;
}

// The G query heads of KV head `kv`, token t, over positions [first, end): state [G], sums [G, H].
static void attend(const attention *a, int32_t t, int32_t kv, int32_t first, int32_t end, attar_softmax *state,
                   float *sums) {
    const attar_step *s = a->step;
    const float *q = s->scratch->q + ((int64_t)t * a->N + kv * a->G) * a->H;  // [G, H]
    float *scores = s->scratch->scores + (int64_t)a->thread * a->G * ATTAR_ATTEND_CHUNK;
    attar_segment segments[2];
    for (int32_t g = 0; g < a->G; g++) state[g] = (attar_softmax){-INFINITY, 0.0F};
    memset(sums, 0, (size_t)(a->G * a->H) * sizeof *sums);
    const int32_t n = attar_cache_segments(a->cache, s->model, kv, first, end, segments);
    for (int32_t i = 0; i < n; i++)
        s->kernels->attend(q, segments[i].k, segments[i].v, a->H, segments[i].n, a->G, a->H, s->model->attention_cap,
                           state, sums, scores);
}

// A prompt: one (token, KV head) after another. Later tokens see more keys, so threads take turns.
static void attend_prompt(const attention *a) {
    const attar_step *s = a->step;
    attar_softmax *state = s->scratch->states + (int64_t)a->thread * a->G;  // [G]
    for (int32_t i = a->thread; i < s->n_tokens * a->K; i += a->n_threads) {
        const int32_t t = i / a->K, kv = i % a->K, p = s->position + t;
        float *mixed = s->scratch->mixed + ((int64_t)t * a->N + kv * a->G) * a->H;  // [G, H]
        attend(a, t, kv, first_key(a, p), p + 1, state, mixed);
        for (int32_t g = 0; g < a->G; g++) s->kernels->scale(mixed + g * a->H, 1.0F / state[g].sum, a->H);
    }
}

// A single token: its keys fall into chunks at fixed positions, and all (KV head, chunk) pairs are shared out.
typedef struct {
    int32_t first, end;  // keys
    int32_t n_chunks, first_chunk;
} chunking;

static chunking chunk_keys(const attention *a) {
    chunking c = {.first = first_key(a, a->step->position), .end = a->step->position + 1};
    c.first_chunk = c.first / ATTAR_DECODE_CHUNK;
    c.n_chunks = (c.end - 1) / ATTAR_DECODE_CHUNK + 1 - c.first_chunk;
    return c;
}

static void attend_chunks(const attention *a, chunking c) {
    int32_t begin, end;
    attar_split(a->K * c.n_chunks, 1, a->thread, a->n_threads, &begin, &end);
    for (int32_t i = begin; i < end; i++) {
        const int32_t start = (c.first_chunk + i % c.n_chunks) * ATTAR_DECODE_CHUNK, stop = start + ATTAR_DECODE_CHUNK;
        attend(a, 0, i / c.n_chunks, start > c.first ? start : c.first, stop < c.end ? stop : c.end,
               a->step->scratch->chunk_states + (int64_t)i * a->G,           // [K, chunks, G]
               a->step->scratch->chunk_sums + (int64_t)i * a->G * a->H);     // [K, chunks, G, H]
    }
}

// mixed [H] of one query head = sum of its chunks' sums, each weighed by exp(its maximum - the largest maximum).
static void merge_head(const attention *a, chunking c, int32_t head) {
    const attar_scratch *scratch = a->step->scratch;
    const int64_t first = (int64_t)(head / a->G) * c.n_chunks * a->G + head % a->G;  // then every G-th
    float *mixed = scratch->mixed + (int64_t)head * a->H;                           // [H]
    float max = -INFINITY, total = 0.0F;
    for (int32_t i = 0; i < c.n_chunks; i++) max = fmaxf(max, scratch->chunk_states[first + (int64_t)i * a->G].max);
    memset(mixed, 0, (size_t)a->H * sizeof *mixed);
    for (int32_t i = 0; i < c.n_chunks; i++) {
        const int64_t at = first + (int64_t)i * a->G;
        const float weight = expf(scratch->chunk_states[at].max - max);
        const float *sums = scratch->chunk_sums + at * a->H;  // [H]
        total += weight * scratch->chunk_states[at].sum;
        for (int32_t j = 0; j < a->H; j++) mixed[j] += weight * sums[j];
    }
    a->step->kernels->scale(mixed, 1.0F / total, a->H);
}

// act = mixed as integers, n values from `begin` on in [T, N*H]; both are multiples of 32.
static void quantize_mixed(const attention *a, int64_t begin, int32_t n) {
    const attar_scratch *scratch = a->step->scratch;
    const int64_t group = begin / ATTAR_GROUP;
    const attar_act act = {scratch->act.q + begin, scratch->act.d + group, scratch->act.s + group};
    if (n > 0) a->step->kernels->quantize(scratch->mixed + begin, act, 1, n);
}

// Merges this thread's heads, and rounds them at once: heads go by as many as fill whole groups.
static void merge_chunks(const attention *a, chunking c, bool quantize) {
    int32_t begin, end, unit = 1;
    while (quantize && unit * a->H % ATTAR_GROUP != 0) unit++;
    attar_split(a->N, unit, a->thread, a->n_threads, &begin, &end);
    for (int32_t head = begin; head < end; head++) merge_head(a, c, head);
    if (quantize) quantize_mixed(a, begin * a->H, (end - begin) * a->H);
}

void attar_attention(const attar_step *step, int32_t index, int32_t thread, int32_t n_threads) {
    const attar_model *m = step->model;
    const attention a = {step, &m->layers[index], &step->cache->layers[index], thread, n_threads,
                         m->head_dim, m->n_heads, m->n_kv_heads, m->n_heads / m->n_kv_heads};
    const bool quantize = attar_type_get(a.layer->o.type).integer;
    prepare(&a);
    attar_pool_barrier(step->pool);
    if (step->n_tokens == 1) {
        const chunking chunks = chunk_keys(&a);
        attend_chunks(&a, chunks);
        attar_pool_barrier(step->pool);
        merge_chunks(&a, chunks, quantize);
        return;
    }
    attend_prompt(&a);
    if (!quantize) return;
    attar_pool_barrier(step->pool);  // a group may span the heads of two threads
    int32_t begin, end;
    attar_split(step->n_tokens, 1, thread, n_threads, &begin, &end);
    for (int32_t t = begin; t < end; t++) quantize_mixed(&a, (int64_t)t * a.N * a.H, a.N * a.H);
}
