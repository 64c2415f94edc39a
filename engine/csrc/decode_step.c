// The stages of a layer, and what one thread does between them.
#include "decode_step.h"

#include <string.h>

enum { TO_QKV, TO_ATTENDED, FROM_ATTENDED, TO_GATE, FROM_GATE, N_STAGES };

static float constant(const step *s, int which) { return ((const float *)s->in[CONSTANTS])[which]; }

static const float *weight(const step *s, int which, int64_t layer, int64_t size) {
    return (const float *)s->in[which] + layer * size;
}

static bool has_norm(const step *s, int which) { return s->in[which] != NULL; }

static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

static int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

// Columns begin to end, counted from `first`, of one of several products that stand side by side.
static void multiply_part(const step *s, few_rows_product product, int64_t first, int64_t begin, int64_t end) {
    begin = max(begin - first, 0);
    end = min(end - first, product.M);
    if (begin < end) s->kernels->multiply(&product, begin, end);
}

static void to_qkv(const step *s, int64_t layer, int64_t begin, int64_t end) {
    const int64_t M = s->N * s->H, small = s->K * s->H, D = s->D, R = s->R;
    multiply_part(s, (few_rows_product){s->normed, weight(s, Q_PROJ, layer, M * D), s->q, R, D, M}, 0, begin, end);
    const few_rows_product k = {s->normed, weight(s, K_PROJ, layer, small * D), s->k, R, D, small};
    const few_rows_product v = {s->normed, weight(s, V_PROJ, layer, small * D), s->v, R, D, small};
    multiply_part(s, k, M, begin, end);
    multiply_part(s, v, M + small, begin, end);
}

// Norms, turns and scales a head of H entries; `from` and `to` may not overlap.
static void turn(const step *s, int64_t layer, int64_t row, int norm, const float *from, float *to, float scale) {
    const int64_t H = s->H, half = H / 2;
    const int32_t kind = ((const int32_t *)s->in[LAYERS])[2 * layer + 1];
    const float *cosines = (const float *)s->in[ROPE] + (2 * kind * s->R + row) * half;
    const float *sines = cosines + s->R * half;
    if (has_norm(s, norm))
        s->kernels->norm(from, weight(s, norm, layer, H), to, H, constant(s, EPS), constant(s, GAIN_OFFSET));
    else
        memcpy(to, from, (size_t)H * sizeof *to);
    for (int64_t j = 0; j < half; j++) {
        const float first = to[j], second = to[j + half];
        to[j] = (first * cosines[j] - second * sines[j]) * scale;
        to[j + half] = (second * cosines[j] + first * sines[j]) * scale;
    }
}

// Slots that a row sees in a layer: not padding, not later, and among the `window` latest. None is written behind SLOT.
static int64_t find_seen(const step *s, int64_t layer, int64_t row, int32_t *seen) {
    const int32_t *positions = (const int32_t *)s->in[KEY_POSITIONS] + row * s->S;
    const int64_t position = ((const int32_t *)s->in[POSITION])[row];
    const int64_t window = ((const int32_t *)s->in[LAYERS])[2 * layer];
    const int64_t written = *(const int32_t *)s->in[SLOT] + 1;
    int64_t n = 0;
    for (int64_t i = 0; i < written; i++) {
        seen[n] = (int32_t)i;
        n += positions[i] >= 0 && positions[i] <= position && position - positions[i] < window;
    }
    return n;
}

// One row's queries of one head of keys and values, whose new entries are written first.
static void to_attended(const step *s, int64_t layer, int64_t pair, int64_t thread) {
    const int64_t row = pair / s->K, head = pair % s->K, H = s->H, G = s->N / s->K;
    const int64_t cache = ((layer * s->R + row) * s->K + head) * s->S * H;
    const int64_t slot = *(const int32_t *)s->in[SLOT], from = (row * s->K + head) * H;
    turn(s, layer, row, K_NORM, s->k + from, s->keys + cache + slot * H, 1.0f);
    memcpy(s->values + cache + slot * H, s->v + from, (size_t)H * sizeof *s->v);
    float *queries = s->queries + thread * G * H;
    for (int64_t g = 0; g < G; g++)
        turn(s, layer, row, Q_NORM, s->q + (row * s->N + head * G + g) * H, queries + g * H, constant(s, QUERY_SCALE));
    int32_t *seen = s->seen + thread * s->S;
    const head_attention attention = {
        .queries = queries,
        .keys = s->keys + cache,
        .values = s->values + cache,
        .attended = s->attended + (row * s->N + head * G) * H,
        .seen = seen,
        .scores = s->scores + thread * G * s->score_stride,
        .G = G,
        .H = H,
        .n_seen = find_seen(s, layer, row, seen),
        .score_stride = s->score_stride,
        .cap = constant(s, CAP),
    };
    s->kernels->attend(&attention);
}

static void to_gate(const step *s, int64_t layer, int64_t begin, int64_t end) {
    const int64_t F = s->F, D = s->D, R = s->R;
    const few_rows_product gate = {s->normed, weight(s, GATE_PROJ, layer, F * D), s->gate, R, D, F};
    const few_rows_product up = {s->normed, weight(s, UP_PROJ, layer, F * D), s->up, R, D, F};
    s->kernels->multiply(&gate, begin, end);
    s->kernels->multiply(&up, begin, end);
    const bool gelu = constant(s, IS_GELU) != 0.0f;
    for (int64_t r = 0; r < R; r++)
        s->kernels->activate(s->gate + r * F + begin, s->up + r * F + begin, end - begin, gelu);
}

// Columns of a stage that are shared out; rows and heads in the case of attention.
static int64_t stage_size(const step *s, int64_t kind) {
    switch (kind) {
        case TO_QKV: return (s->N + 2 * s->K) * s->H;
        case TO_ATTENDED: return s->R * s->K;
        case TO_GATE: return s->F;
        default: return s->D;
    }
}

void decode_piece(void *work, int64_t stage, int64_t piece, int64_t thread) {
    const step *s = work;
    const int64_t layer = stage / N_STAGES, kind = stage % N_STAGES, size = stage_size(s, kind);
    const int64_t begin = size * piece / s->pieces, end = size * (piece + 1) / s->pieces;
    const int64_t heads = s->N * s->H, D = s->D, F = s->F, R = s->R;
    switch (kind) {
        case TO_QKV: to_qkv(s, layer, begin, end); return;
        case TO_ATTENDED:
            for (int64_t pair = begin; pair < end; pair++) to_attended(s, layer, pair, thread);
            return;
        case FROM_ATTENDED: {
            const float *w = weight(s, O_PROJ, layer, D * heads);
            s->kernels->multiply(&(few_rows_product){s->attended, w, s->branch, R, heads, D}, begin, end);
            return;
        }
        case TO_GATE: to_gate(s, layer, begin, end); return;
        default: {
            const float *w = weight(s, DOWN_PROJ, layer, D * F);
            s->kernels->multiply(&(few_rows_product){s->gate, w, s->branch, R, F, D}, begin, end);
        }
    }
}

static void norm_rows(const step *s, const float *x, int which, int64_t layer, float *y) {
    const float *gain = weight(s, which, layer, s->D), eps = constant(s, EPS), offset = constant(s, GAIN_OFFSET);
    for (int64_t r = 0; r < s->R; r++) s->kernels->norm(x + r * s->D, gain, y + r * s->D, s->D, eps, offset);
}

// Adds a branch's result to the stream, normed first where the family has that norm.
static void add_branch(const step *s, bool normed, int which, int64_t layer) {
    if (normed) norm_rows(s, s->branch, which, layer, s->branch);
    for (int64_t i = 0; i < s->R * s->D; i++) s->stream[i] += s->branch[i];
}

static void run_stage(const step *s, team *t, int64_t layer, int kind) {
    const int64_t stage = layer * N_STAGES + kind;
    if (t)
        team_run(t, stage, s->pieces);
    else
        decode_piece((void *)s, stage, 0, 0);
}

void run_layers(const step *s, team *t) {
    // Llama calls the norm before the MLP "post attention"; with post-norms that name is the branch's.
    const bool post_norms = has_norm(s, PRE_MLP_NORM);
    for (int64_t layer = 0; layer < s->L; layer++) {
        norm_rows(s, s->stream, INPUT_NORM, layer, s->normed);
        run_stage(s, t, layer, TO_QKV);
        run_stage(s, t, layer, TO_ATTENDED);
        run_stage(s, t, layer, FROM_ATTENDED);
        add_branch(s, post_norms, POST_ATTENTION_NORM, layer);
        norm_rows(s, s->stream, post_norms ? PRE_MLP_NORM : POST_ATTENTION_NORM, layer, s->normed);
        run_stage(s, t, layer, TO_GATE);
        run_stage(s, t, layer, FROM_GATE);
        add_branch(s, post_norms, POST_MLP_NORM, layer);
    }
}
