// One step's way from token ids to logits. Every thread of the pool runs run_step from top to bottom; the work inside a
// phase is split between them, and a barrier separates phases that read each other's results. Splits are by whole
// output rows, tokens or heads, and every sum is taken by one thread in a fixed order, so the number of threads never
// changes a bit of the result. attention.c holds the attention phase.
#include "forward.h"

#include <math.h>

#include "attention.h"

enum { ROW_UNIT = ATTAR_GROUP };  // rows of one thread start at multiples of this: a cache line, a group of activations

static bool is_integer(const attar_weight *w) { return attar_type_get(w->type).integer; }

// `cols` values from column `col` on of token t of activations [T, width].
static attar_act act_at(attar_act a, int32_t t, int32_t width, int32_t col) {
    const int64_t at = (int64_t)t * width + col;
    return (attar_act){a.q + at, a.d + at / ATTAR_GROUP, a.s + at / ATTAR_GROUP};
}

// Activations [T, cols] as floats, and as integers if a product wants them.
typedef struct {
    const float *x;
    attar_act act;
} activations;

// y [T, w->rows], columns row0 to row1 - 1: in w^T.
static void project(const attar_step *s, const attar_weight *w, int32_t row0, int32_t row1, activations in, float *y) {
    if (row0 >= row1) return;
    if (is_integer(w))
        s->kernels->matmul(w, row0, row1, in.act, s->n_tokens, y, w->rows);
    else
        s->kernels->matmul_f32(w, row0, row1, in.x, s->n_tokens, y, w->rows);
}

// branch [T, D] = in w^T, this thread's share of the columns.
static void project_branch(const attar_step *s, const attar_weight *w, activations in, int32_t thread,
                           int32_t n_threads) {
    int32_t row0, row1;
    attar_split(w->rows, ROW_UNIT, thread, n_threads, &row0, &row1);
    project(s, w, row0, row1, in, s->scratch->branch);
}

// x [T, D] = the embeddings of this thread's tokens.
static void embed(const attar_step *s, int32_t begin, int32_t end) {
    const attar_model *m = s->model;
    const int32_t D = m->n_embd;
    for (int32_t t = begin; t < end; t++) {
        float *x = s->scratch->x + (int64_t)t * D;  // [D]
        attar_dequantize_row(m->embed.type, m->embed.data + (uint64_t)s->tokens[t] * m->embed.row_bytes, x, (uint64_t)D);
        if (m->family->scale_embeddings) s->kernels->scale(x, sqrtf((float)D), D);
    }
}

// cosines, sines [2, T, H/2]: the angles of this thread's tokens, for global and for local layers.
static void prepare_rope(const attar_step *s, int32_t begin, int32_t end) {
    const int32_t half = s->model->head_dim / 2;
    const int32_t n_kinds = s->model->n_local_layers > 0 ? 2 : 1;
    for (int32_t kind = 0; kind < n_kinds; kind++) {
        for (int32_t t = begin; t < end; t++) {
            const int64_t at = attar_rope_at(s, kind == 1, t);
            for (int32_t j = 0; j < half; j++) {
                double angle = (s->position + t) * s->scratch->inverse_frequencies[kind * half + j];
                s->scratch->cosines[at + j] = (float)cos(angle);
                s->scratch->sines[at + j] = (float)sin(angle);
            }
        }
    }
}

// x += branch (through its post-norm, where there is one), for this thread's tokens.
static void add_branch(const attar_step *s, const float *post_norm, int32_t begin, int32_t end) {
    const int32_t D = s->model->n_embd;
    for (int32_t t = begin; t < end; t++) {
        float *branch = s->scratch->branch + (int64_t)t * D;  // [D]
        if (post_norm) s->kernels->rms_norm(branch, post_norm, branch, D, s->model->rms_eps);
        s->kernels->add(s->scratch->x + (int64_t)t * D, branch, D);
    }
}

// h [T, D] = rms_norm(x), and act the same as integers if a product wants them, for this thread's tokens.
static void norm(const attar_step *s, const float *weight, bool quantize, int32_t begin, int32_t end) {
    const int32_t D = s->model->n_embd;
    for (int32_t t = begin; t < end; t++) {
        float *h = s->scratch->h + (int64_t)t * D;  // [D]
        s->kernels->rms_norm(s->scratch->x + (int64_t)t * D, weight, h, D, s->model->rms_eps);
        if (quantize) s->kernels->quantize(h, act_at(s->scratch->act, t, D, 0), 1, D);
    }
}

// Rows row0 to row1 - 1 of the stacked matrices q, k, v: [N*H + 2*K*H, D] times h.
static void project_qkv(const attar_step *s, const attar_layer *layer, int32_t row0, int32_t row1) {
    const activations in = {s->scratch->h, s->scratch->act};
    const attar_weight *weights[3] = {&layer->q, &layer->k, &layer->v};
    float *outputs[3] = {s->scratch->q, s->scratch->k, s->scratch->v};  // [T, N*H], [T, K*H], [T, K*H]
    for (int32_t i = 0, start = 0; i < 3; start += weights[i++]->rows) {
        const int32_t rows = weights[i]->rows;
        const int32_t from = row0 > start ? row0 - start : 0, to = row1 - start < rows ? row1 - start : rows;
        project(s, weights[i], from, to, in, outputs[i]);
    }
}

// gate [T, F], columns row0 to row1 - 1 = activation(gate_proj h) * (up_proj h); and gate_act, if down_proj wants it.
static void gated_mlp(const attar_step *s, const attar_layer *layer, int32_t row0, int32_t row1) {
    const attar_kernels *kernels = s->kernels;
    const int32_t F = s->model->n_ff, n = row1 - row0;
    const activations in = {s->scratch->h, s->scratch->act};
    project(s, &layer->gate, row0, row1, in, s->scratch->gate);
    project(s, &layer->up, row0, row1, in, s->scratch->up);
    for (int32_t t = 0; t < s->n_tokens && n > 0; t++) {
        float *gate = s->scratch->gate + (int64_t)t * F + row0;  // [n]
        const float *up = s->scratch->up + (int64_t)t * F + row0;
        if (s->model->family->gelu)
            kernels->gelu_mul(gate, up, gate, n);
        else
            kernels->silu_mul(gate, up, gate, n);
        if (is_integer(&layer->down)) kernels->quantize(gate, act_at(s->scratch->gate_act, t, F, row0), 1, n);
    }
}

// logits [n_logits, V] of the last tokens: rms_norm, head, soft cap.
static void project_head(const attar_step *s, int32_t thread, int32_t n_threads) {
    const attar_model *m = s->model;
    const int32_t D = m->n_embd, V = m->n_vocab, first = s->n_tokens - s->n_logits;
    int32_t begin, end, row0, row1;
    attar_split(s->n_logits, 1, thread, n_threads, &begin, &end);
    norm(s, m->output_norm, is_integer(&m->head), first + begin, first + end);
    attar_pool_barrier(s->pool);
    attar_split(V, ROW_UNIT, thread, n_threads, &row0, &row1);
    if (row0 >= row1) return;
    const attar_act act = act_at(s->scratch->act, first, D, 0);
    if (is_integer(&m->head))
        s->kernels->matmul(&m->head, row0, row1, act, s->n_logits, s->logits, V);
    else
        s->kernels->matmul_f32(&m->head, row0, row1, s->scratch->h + (int64_t)first * D, s->n_logits, s->logits, V);
    for (int32_t t = 0; t < s->n_logits && m->final_cap > 0.0F; t++)
        s->kernels->soft_cap(s->logits + (int64_t)t * V + row0, m->final_cap, row1 - row0);
}

static void run_layer(const attar_step *s, int32_t index, int32_t thread, int32_t n_threads) {
    const attar_layer *layer = &s->model->layers[index];
    const attar_scratch *a = s->scratch;
    int32_t begin, end, row0, row1;
    attar_split(s->n_tokens, 1, thread, n_threads, &begin, &end);

    norm(s, layer->attn_norm, is_integer(&layer->q) || is_integer(&layer->k) || is_integer(&layer->v), begin, end);
    attar_pool_barrier(s->pool);

    attar_split(layer->q.rows + 2 * layer->k.rows, ROW_UNIT, thread, n_threads, &row0, &row1);
    project_qkv(s, layer, row0, row1);
    attar_pool_barrier(s->pool);

    attar_attention(s, index, thread, n_threads);  // q, k, v -> mixed, and act if o_proj wants it
    attar_pool_barrier(s->pool);

    project_branch(s, &layer->o, (activations){a->mixed, a->act}, thread, n_threads);
    attar_pool_barrier(s->pool);

    add_branch(s, layer->post_attention_norm, begin, end);
    norm(s, layer->ffn_norm, is_integer(&layer->gate) || is_integer(&layer->up), begin, end);
    attar_pool_barrier(s->pool);

    attar_split(s->model->n_ff, ROW_UNIT, thread, n_threads, &row0, &row1);
    gated_mlp(s, layer, row0, row1);
    attar_pool_barrier(s->pool);

    project_branch(s, &layer->down, (activations){a->gate, a->gate_act}, thread, n_threads);
    attar_pool_barrier(s->pool);

    add_branch(s, layer->post_ffw_norm, begin, end);
}

static void run_step(void *context, int32_t thread, int32_t n_threads) {
    const attar_step *s = context;
    int32_t begin, end;
    attar_split(s->n_tokens, 1, thread, n_threads, &begin, &end);
    embed(s, begin, end);
    prepare_rope(s, begin, end);
    for (int32_t i = 0; i < s->model->n_layers; i++) run_layer(s, i, thread, n_threads);
    if (s->n_logits == 0) return;
    attar_pool_barrier(s->pool);  // the head splits the last tokens, not all of them
    project_head(s, thread, n_threads);
}

void attar_forward(attar_step *step) { attar_pool_run(step->pool, run_step, step); }

void attar_rope_frequencies(const attar_model *model, double *out) {
    const int32_t half = model->head_dim / 2;
    for (int32_t j = 0; j < half; j++) {
        const double exponent = -2.0 * j / model->head_dim;
        const double divisor = model->rope_freqs ? model->rope_freqs[j] : 1.0;
        out[j] = pow(model->rope_base, exponent) * model->rope_scale / divisor;
        out[half + j] = pow(model->rope_local_base, exponent) * model->rope_local_scale;
    }
}
