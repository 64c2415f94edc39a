// One step's way from token ids to logits. Every thread of the pool runs run_step from top to bottom; the work inside a
// phase is shared out, and a barrier separates phases that read each other's results. Every sum is taken by one thread
// in a fixed order, so the number of threads never changes a bit of the result. attention.c holds the attention phase.
//
// Products and attention hand their work out as threads ask for it. What belongs to a token (the residual stream x, its
// norm h) is split by tokens; a single token cannot be split, so there every thread computes x and h for itself, which
// costs less than two more barriers a layer.
#include "forward.h"

#include <math.h>

#include "attention.h"
#include "rope.h"

// Rows are handed out in multiples of these, which are whole tiles of a weight and whole groups of integers. With many
// tokens each range of rows prepares the activations anew, which wants longer ones.
enum { ROW_UNIT = ATTAR_GROUP, PROMPT_ROW_UNIT = 3 * ATTAR_GROUP };

// One thread's view of a step.
typedef struct {
    const attar_step *s;
    int32_t thread, n_threads;
    int32_t first, n_tokens;  // tokens first .. T - 1 are still followed, n_tokens of them
    int32_t begin, end;       // tokens whose x and h this thread computes
    int32_t shift;            // row of token t is t + shift: a single token has a row of its own for every thread
} worker;

static worker make_worker(const attar_step *s, int32_t thread, int32_t n_threads) {
    worker w = {.s = s, .thread = thread, .n_threads = n_threads, .n_tokens = s->n_tokens, .end = 1, .shift = thread};
    if (s->n_tokens == 1) return w;
    attar_split(s->n_tokens, 1, thread, n_threads, &w.begin, &w.end);
    w.shift = 0;
    return w;
}

// Follows only the last n_tokens from here on.
static void narrow(worker *w, int32_t n_tokens) {
    if (n_tokens == w->s->n_tokens) return;
    w->n_tokens = n_tokens;
    w->first = w->s->n_tokens - n_tokens;
    attar_split(n_tokens, 1, w->thread, w->n_threads, &w->begin, &w->end);
    w->begin += w->first;
    w->end += w->first;
}

// x and h are complete for every thread that reads them.
static void join_tokens(const worker *w) {
    if (w->s->n_tokens > 1) attar_pool_barrier(w->s->pool);
}

static bool take_rows(const worker *w, int32_t rows, int32_t *row0, int32_t *row1) {
    return attar_pool_take_range(w->s->pool, rows, w->n_tokens > 1 ? PROMPT_ROW_UNIT : ROW_UNIT, row0, row1);
}

static bool is_integer(const attar_weight *w) { return attar_type_get(w->type).integer; }

// `a` from row `row` (of `width` values), column `col` on.
static attar_act act_at(attar_act a, int32_t row, int32_t width, int32_t col) {
    const int64_t at = (int64_t)row * width + col;
    return (attar_act){(uint8_t *)a.q + at * a.bits / 8, a.d + at / ATTAR_GROUP, a.sum + at / (ATTAR_GROUP / 2), a.bits};
}

// Activations [n_tokens, cols] as floats, and as integers if a product wants them.
typedef struct {
    const float *x;
    attar_act act;
} activations;

// h of the tokens followed [n_tokens, D], or this thread's own [1, D]; act is theirs.
static activations normed(const worker *w, attar_act act) {
    const int32_t D = w->s->model->n_embd, row = w->first + w->shift;
    return (activations){w->s->scratch->h + (int64_t)row * D, act_at(act, row, D, 0)};
}

// y [n_tokens, m->rows], columns row0 to row1 - 1: in m^T.
static void project(const worker *w, const attar_weight *m, int32_t row0, int32_t row1, activations in, float *y) {
    if (row0 >= row1) return;
    if (is_integer(m))
        w->s->kernels->matmul(m, row0, row1, in.act, w->n_tokens, y, m->rows);
    else
        w->s->kernels->matmul_f32(m, row0, row1, in.x, w->n_tokens, y, m->rows);
}

// --- the phases of a layer ----------------------------------------------------------------------------------------

// x [D] of this thread's tokens = their embeddings.
static void embed(const worker *w) {
    const attar_step *s = w->s;
    const int32_t D = s->model->n_embd;
    for (int32_t t = w->begin; t < w->end; t++) {
        float *x = s->scratch->x + (int64_t)(t + w->shift) * D;  // [D]
        attar_weight_row(&s->model->embed, s->tokens[t], x);
        if (s->model->family->scale_embeddings) s->kernels->scale(x, sqrtf((float)D), D);
    }
}

// cosines, sines [2, T, H/2]: the angles of every token, for global and for local layers.
static void prepare_rope(const worker *w) {
    const attar_step *s = w->s;
    const int32_t half = s->model->head_dim / 2, n_kinds = s->model->n_local_layers > 0 ? 2 : 1;
    int32_t begin, end;
    attar_split(s->n_tokens, 1, w->thread, w->n_threads, &begin, &end);
    for (int32_t kind = 0; kind < n_kinds; kind++) {
        for (int32_t t = begin; t < end; t++) {
            const int64_t at = attar_rope_at(s, kind == 1, t);
            attar_rope_angles(s->model, kind == 1, s->scratch->inverse_frequencies + kind * half, s->position + t,
                              s->scratch->cosines + at, s->scratch->sines + at);
        }
    }
}

// x += branch (through its post-norm, where there is one), for this thread's tokens.
static void add_branch(const worker *w, const float *post_norm) {
    const attar_step *s = w->s;
    const int32_t D = s->model->n_embd;
    for (int32_t t = w->begin; t < w->end; t++) {
        float *x = s->scratch->x + (int64_t)(t + w->shift) * D, *h = s->scratch->h + (int64_t)(t + w->shift) * D;  // [D]
        const float *branch = s->scratch->branch + (int64_t)t * D;  // [D], shared: not to be written here
        if (post_norm) s->kernels->rms_norm(branch, post_norm, h, D, s->model->rms_eps);
        s->kernels->add(x, post_norm ? h : branch, D);
    }
}

// h [D] = rms_norm(x), and act the same as integers if a product wants them, for this thread's tokens.
static void norm(const worker *w, const float *weight, bool quantize, attar_act act) {
    const attar_step *s = w->s;
    const int32_t D = s->model->n_embd;
    for (int32_t row = w->begin + w->shift; row < w->end + w->shift; row++) {
        const float *x = s->scratch->x + (int64_t)row * D;
        float *h = s->scratch->h + (int64_t)row * D;  // [D]
        if (quantize)
            s->kernels->rms_norm_quantize(x, weight, h, act_at(act, row, D, 0), D, s->model->rms_eps);
        else
            s->kernels->rms_norm(x, weight, h, D, s->model->rms_eps);
    }
}

// q, k, v [T, N*H], [T, K*H], [T, K*H] = h times the stacked matrices [N*H + 2*K*H, D].
static void project_qkv(const worker *w, const attar_layer *layer) {
    const attar_scratch *a = w->s->scratch;
    const attar_weight *weights[3] = {&layer->q, &layer->k, &layer->v};
    float *outputs[3] = {a->q, a->k, a->v};
    int32_t row0, row1;
    while (take_rows(w, layer->q.rows + 2 * layer->k.rows, &row0, &row1)) {
        for (int32_t i = 0, start = 0; i < 3; start += weights[i++]->rows) {
            const int32_t rows = weights[i]->rows;
            const int32_t from = row0 > start ? row0 - start : 0, to = row1 - start < rows ? row1 - start : rows;
            project(w, weights[i], from, to, normed(w, a->act), outputs[i]);
        }
    }
}

// branch [T, D] of the tokens followed = x m^T; x and act [T, m->cols].
static void project_branch(const worker *w, const attar_weight *m, const float *x, attar_act act) {
    const activations in = {x + (int64_t)w->first * m->cols, act_at(act, w->first, m->cols, 0)};
    float *y = w->s->scratch->branch + (int64_t)w->first * m->rows;
    int32_t row0, row1;
    while (take_rows(w, m->rows, &row0, &row1)) project(w, m, row0, row1, in, y);
}

// gate [T, F], columns column0 to column1 - 1, of the tokens followed = activation(gate_proj h) * (up_proj h), or
// gate_act the same as integers if down_proj wants them. Both products stay in this thread's room, near the caches.
static void gated_columns(const worker *w, const attar_layer *layer, int32_t column0, int32_t column1) {
    const attar_step *s = w->s;
    const attar_scratch *a = s->scratch;
    const attar_kernels *k = s->kernels;
    const int32_t F = s->model->n_ff, n = column1 - column0;
    const bool gelu = s->model->family->gelu, quantize = is_integer(&layer->down);
    const attar_weight gate_rows = attar_weight_rows(&layer->gate, column0, column1);
    const attar_weight up_rows = attar_weight_rows(&layer->up, column0, column1);
    const attar_mlp_room room = a->mlp_rooms[w->thread];
    project(w, &gate_rows, 0, n, normed(w, a->act), room.gate);
    project(w, &up_rows, 0, n, normed(w, a->act), room.up);
    for (int32_t i = 0; i < w->n_tokens; i++) {
        const float *gate = room.gate + (int64_t)i * n, *up = room.up + (int64_t)i * n;  // [n]
        const int32_t t = w->first + i;
        if (quantize)
            (gelu ? k->gelu_mul_quantize : k->silu_mul_quantize)(gate, up, act_at(a->gate_act, t, F, column0), n);
        else
            (gelu ? k->gelu_mul : k->silu_mul)(gate, up, a->gate + (int64_t)t * F + column0, n);
    }
}

static void gated_mlp(const worker *w, const attar_layer *layer) {
    int32_t begin, end;
    while (take_rows(w, w->s->model->n_ff, &begin, &end)) {
        for (int32_t c = begin; c < end; c += ATTAR_MLP_COLUMNS)
            gated_columns(w, layer, c, end - c < ATTAR_MLP_COLUMNS ? end : c + ATTAR_MLP_COLUMNS);
    }
}

// logits [n_logits, V] of the tokens followed: rms_norm, head, soft cap. Rounding the head's input to 8 bits would cost
// a third of all that 8-bit activations cost, for a product that is taken for few tokens: it always has 16.
static void project_head(const worker *w) {
    const attar_step *s = w->s;
    const attar_model *m = s->model;
    const int32_t V = m->n_vocab;
    norm(w, m->output_norm, is_integer(&m->head), s->scratch->head_act);
    join_tokens(w);
    int32_t row0, row1;
    while (take_rows(w, V, &row0, &row1)) {
        project(w, &m->head, row0, row1, normed(w, s->scratch->head_act), s->logits);
        for (int32_t t = 0; t < s->n_logits && m->final_cap > 0.0F; t++)
            s->kernels->soft_cap(s->logits + (int64_t)t * V + row0, m->final_cap, row1 - row0);
    }
}

static void run_layer(worker *w, int32_t index) {
    const attar_step *s = w->s;
    const attar_layer *layer = &s->model->layers[index];
    const attar_scratch *a = s->scratch;

    norm(w, layer->attn_norm, is_integer(&layer->q) || is_integer(&layer->k) || is_integer(&layer->v), a->act);
    join_tokens(w);
    project_qkv(w, layer);
    attar_pool_barrier(s->pool);
    attar_attention(s, index, w->thread, w->n_threads);  // q, k, v -> mixed [T, N*H], and act if o_proj wants it
    attar_pool_barrier(s->pool);
    // Past the last keys and values only tokens with logits matter.
    if (index == s->model->n_layers - 1) narrow(w, s->n_logits);
    if (w->n_tokens == 0) return;

    project_branch(w, &layer->o, a->mixed, a->act);
    attar_pool_barrier(s->pool);
    add_branch(w, layer->post_attention_norm);
    norm(w, layer->ffn_norm, is_integer(&layer->gate) || is_integer(&layer->up), a->act);
    join_tokens(w);
    gated_mlp(w, layer);
    attar_pool_barrier(s->pool);
    project_branch(w, &layer->down, a->gate, a->gate_act);
    attar_pool_barrier(s->pool);
    add_branch(w, layer->post_ffw_norm);
}

static void run_step(void *context, int32_t thread, int32_t n_threads) {
    worker w = make_worker(context, thread, n_threads);
    embed(&w);
    prepare_rope(&w);
    for (int32_t i = 0; i < w.s->model->n_layers; i++) run_layer(&w, i);
    if (w.n_tokens > 0) project_head(&w);
}

void attar_forward(attar_step *step) { attar_pool_run(step->pool, run_step, step); }
