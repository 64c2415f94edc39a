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

// How products are shared out. A part of one is a range of tokens times a range of rows, and prepares its activations for
// itself: so with many tokens a part is few tokens, whose activations stay in the first cache while all rows stream by.
// Rows come in multiples of whole tiles of a weight and whole groups of integers, tokens in the kernels' blocks.
enum { PARTS_PER_THREAD = 4, ROW_UNIT = ATTAR_GROUP, PROMPT_ROW_UNIT = 3 * ATTAR_GROUP, TOKEN_UNIT = 6, PART_TOKENS = 12 };

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

// Rows row0 to row1 - 1 of a product, for n_tokens tokens from `first` on.
typedef struct {
    int32_t row0, row1, first, n_tokens;
} part;

// The next part of a product of `rows` rows with the tokens followed; false when nothing is left.
static bool take_part(const worker *w, int32_t rows, part *out) {
    const int32_t T = w->n_tokens, token_parts = T < 2 * PART_TOKENS ? 1 : T / PART_TOKENS;
    const int32_t wanted = w->n_threads == 1 ? 1 : (PARTS_PER_THREAD * w->n_threads + token_parts - 1) / token_parts;
    const int32_t unit = T > 1 ? PROMPT_ROW_UNIT : ROW_UNIT, units = (rows + unit - 1) / unit;
    const int32_t step = (units + wanted - 1) / wanted * unit, row_parts = (rows + step - 1) / step;
    const int32_t taken = attar_pool_take(w->s->pool);
    if (taken >= token_parts * row_parts) return false;
    int32_t begin, end;
    attar_split(T, TOKEN_UNIT, taken / row_parts, token_parts, &begin, &end);
    out->row0 = taken % row_parts * step;
    out->row1 = out->row0 + step < rows ? out->row0 + step : rows;
    out->first = w->first + begin;
    out->n_tokens = end - begin;
    return true;
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

// h of the tokens of a part [n_tokens, D], or this thread's own [1, D]; act is theirs.
static activations normed(const worker *w, const part *p, attar_act act) {
    const int32_t D = w->s->model->n_embd, row = p->first + w->shift;
    return (activations){w->s->scratch->h + (int64_t)row * D, act_at(act, row, D, 0)};
}

// y [n_tokens, m->rows], columns row0 to row1 - 1: in m^T.
static void project(const worker *w, const attar_weight *m, int32_t row0, int32_t row1, activations in,
                    int32_t n_tokens, float *y) {
    if (row0 >= row1) return;
    if (is_integer(m))
        w->s->kernels->matmul(m, row0, row1, in.act, n_tokens, y, m->rows);
    else
        w->s->kernels->matmul_f32(m, row0, row1, in.x, n_tokens, y, m->rows);
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
    part p;
    while (take_part(w, layer->q.rows + 2 * layer->k.rows, &p)) {
        for (int32_t i = 0, start = 0; i < 3; start += weights[i++]->rows) {
            const int32_t rows = weights[i]->rows;
            const int32_t from = p.row0 > start ? p.row0 - start : 0, to = p.row1 - start < rows ? p.row1 - start : rows;
            project(w, weights[i], from, to, normed(w, &p, a->act), p.n_tokens, outputs[i] + (int64_t)p.first * rows);
        }
    }
}

// branch [T, D] of the tokens followed = x m^T; x and act [T, m->cols].
static void project_branch(const worker *w, const attar_weight *m, const float *x, attar_act act) {
    part p;
    while (take_part(w, m->rows, &p)) {
        const activations in = {x + (int64_t)p.first * m->cols, act_at(act, p.first, m->cols, 0)};
        project(w, m, p.row0, p.row1, in, p.n_tokens, w->s->scratch->branch + (int64_t)p.first * m->rows);
    }
}

// gate [T, F] of a part's tokens and columns = activation(gate_proj h) * (up_proj h), or gate_act the same as integers if
// down_proj wants them. Both products stay in this thread's room, near the caches.
static void gated_columns(const worker *w, const attar_layer *layer, const part *p) {
    const attar_step *s = w->s;
    const attar_scratch *a = s->scratch;
    const attar_kernels *k = s->kernels;
    const int32_t F = s->model->n_ff, n = p->row1 - p->row0;
    const bool gelu = s->model->family->gelu, quantize = is_integer(&layer->down);
    const attar_weight gate_rows = attar_weight_rows(&layer->gate, p->row0, p->row1);
    const attar_weight up_rows = attar_weight_rows(&layer->up, p->row0, p->row1);
    const attar_mlp_room room = a->mlp_rooms[w->thread];
    project(w, &gate_rows, 0, n, normed(w, p, a->act), p->n_tokens, room.gate);
    project(w, &up_rows, 0, n, normed(w, p, a->act), p->n_tokens, room.up);
    for (int32_t i = 0; i < p->n_tokens; i++) {
        const float *gate = room.gate + (int64_t)i * n, *up = room.up + (int64_t)i * n;  // [n]
        const int32_t t = p->first + i;
        if (quantize)
            (gelu ? k->gelu_mul_quantize : k->silu_mul_quantize)(gate, up, act_at(a->gate_act, t, F, p->row0), n);
        else
            (gelu ? k->gelu_mul : k->silu_mul)(gate, up, a->gate + (int64_t)t * F + p->row0, n);
    }
}

static void gated_mlp(const worker *w, const attar_layer *layer) {
    part p;
    while (take_part(w, w->s->model->n_ff, &p)) {
        // A room has ATTAR_MLP_COLUMNS columns for all tokens, and so more for a few.
        const int32_t columns = ATTAR_MLP_COLUMNS * w->s->n_tokens / p.n_tokens / ATTAR_GROUP * ATTAR_GROUP;
        for (int32_t c = p.row0; c < p.row1; c += columns) {
            const part columns_of = {c, p.row1 - c < columns ? p.row1 : c + columns, p.first, p.n_tokens};
            gated_columns(w, layer, &columns_of);
        }
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
    part p;
    while (take_part(w, V, &p)) {
        float *logits = s->logits + (int64_t)(p.first - w->first) * V;
        project(w, &m->head, p.row0, p.row1, normed(w, &p, s->scratch->head_act), p.n_tokens, logits);
        for (int32_t t = 0; t < p.n_tokens && m->final_cap > 0.0F; t++)
            s->kernels->soft_cap(logits + (int64_t)t * V + p.row0, m->final_cap, p.row1 - p.row0);
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
