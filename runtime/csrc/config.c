#include "config.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"

enum { MAX_LAYERS = 4096, MAX_WIDTH = 1 << 20, MAX_CONTEXT = 1 << 26, MAX_HEADS = 4096, MAX_HEAD_DIM = 4096 };

// Defaults are those of the converters and readers in use, for files written before the keys existed.
static const attar_family FAMILIES[] = {
    {.name = "llama", .interleaved_rope = true, .window_period = 1, .scale_local_rope = true},
    {.name = "qwen2", .qkv_bias = true, .window_period = 1, .scale_local_rope = true},
    {.name = "qwen3", .qk_norm = true, .window_period = 1, .scale_local_rope = true},
    {.name = "gemma", .scale_embeddings = true, .gelu = true, .window_period = 1, .scale_local_rope = true},
    {.name = "gemma2", .scale_embeddings = true, .gelu = true, .post_norms = true, .window_period = 2,
     .default_window = 4096, .scale_local_rope = true, .default_attention_cap = 50.0F, .default_final_cap = 30.0F,
     .wide_query_layers = 46},
    {.name = "gemma3", .scale_embeddings = true, .gelu = true, .post_norms = true, .qk_norm = true,
     .window_period = 6, .default_local_base = 10000.0, .wide_query_layers = 62},
};

typedef struct {
    const char *path;
    attar_model *model;
    attar_error *error;
    char key[128];  // the last key asked for, "<architecture>.<suffix>"
} reader;

static const gguf_kv *find(reader *r, const char *suffix) {
    snprintf(r->key, sizeof r->key, "%s.%s", r->model->family->name, suffix);
    return gguf_find(r->model->file, r->key);
}

// An integer in [low, high]. Absent keys give `fallback`, or fail where that is negative.
static attar_status read_int(reader *r, const char *suffix, int64_t low, int64_t high, int64_t fallback, int32_t *out) {
    const gguf_kv *kv = find(r, suffix);
    int64_t value = fallback;
    if (!kv && fallback < 0)
        return attar_fail(r->error, ATTAR_ERROR_MODEL, "%s: metadata lacks %s", r->path, r->key);
    if (kv && !gguf_get_i64(kv, &value))
        return attar_fail(r->error, ATTAR_ERROR_MODEL, "%s: %s must be one integer (type %d found)", r->path, r->key,
                          (int)kv->type);
    if (value < low || value > high)
        return attar_fail(r->error, ATTAR_ERROR_MODEL, "%s: %s must be %" PRId64 " to %" PRId64 ", got %" PRId64,
                          r->path, r->key, low, high, value);
    *out = (int32_t)value;
    return ATTAR_OK;
}

// A finite number, at least `low`. Absent keys give `fallback`, or fail where that is negative.
static attar_status read_float(reader *r, const char *suffix, double low, double fallback, double *out) {
    const gguf_kv *kv = find(r, suffix);
    *out = fallback;
    if (!kv && fallback < 0.0)
        return attar_fail(r->error, ATTAR_ERROR_MODEL, "%s: metadata lacks %s", r->path, r->key);
    if (kv && (!gguf_get_f64(kv, out) || !isfinite(*out) || *out < low))
        return attar_fail(r->error, ATTAR_ERROR_MODEL, "%s: %s must be one finite float of at least %g", r->path, r->key,
                          low);
    return ATTAR_OK;
}

static attar_status read_family(reader *r) {
    gguf_string name = {"", 0};
    if (!gguf_get_string(gguf_find(r->model->file, "general.architecture"), &name))
        return attar_fail(r->error, ATTAR_ERROR_MODEL, "%s: metadata lacks general.architecture", r->path);
    for (size_t i = 0; i < sizeof FAMILIES / sizeof *FAMILIES; i++) {
        const char *known = FAMILIES[i].name;
        if (name.length == strlen(known) && memcmp(name.data, known, name.length) == 0) {
            r->model->family = &FAMILIES[i];
            return ATTAR_OK;
        }
    }
    return attar_fail(r->error, ATTAR_ERROR_MODEL,
                      "%s: general.architecture must be llama, qwen2, qwen3, gemma, gemma2 or gemma3, got \"%.*s\"",
                      r->path, name.length < 64 ? (int)name.length : 64, name.data);
}

static attar_status read_shapes(reader *r) {
    attar_model *m = r->model;
    attar_status status = read_int(r, "block_count", 1, MAX_LAYERS, -1, &m->n_layers);
    if (status == ATTAR_OK) status = read_int(r, "embedding_length", 1, MAX_WIDTH, -1, &m->n_embd);
    if (status == ATTAR_OK) status = read_int(r, "feed_forward_length", 1, MAX_WIDTH, -1, &m->n_ff);
    if (status == ATTAR_OK) status = read_int(r, "context_length", 1, MAX_CONTEXT, -1, &m->n_ctx_train);
    if (status == ATTAR_OK) status = read_int(r, "attention.head_count", 1, MAX_HEADS, -1, &m->n_heads);
    if (status != ATTAR_OK) return status;
    status = read_int(r, "attention.head_count_kv", 1, MAX_HEADS, m->n_heads, &m->n_kv_heads);
    if (status == ATTAR_OK)
        status = read_int(r, "attention.key_length", 2, MAX_HEAD_DIM, m->n_embd / m->n_heads, &m->head_dim);
    if (status != ATTAR_OK) return status;
    if (m->n_heads % m->n_kv_heads != 0)
        return attar_fail(r->error, ATTAR_ERROR_MODEL,
                          "%s: attention.head_count_kv must divide attention.head_count, got %d and %d", r->path,
                          m->n_kv_heads, m->n_heads);
    // Bounded like every width, so that sizes computed from it cannot wrap.
    if ((int64_t)m->n_heads * m->head_dim > MAX_WIDTH)
        return attar_fail(r->error, ATTAR_ERROR_MODEL, "%s: heads times head size must be at most %d, got %d * %d",
                          r->path, MAX_WIDTH, m->n_heads, m->head_dim);
    if (m->head_dim % 2 != 0)
        return attar_fail(r->error, ATTAR_ERROR_MODEL, "%s: the head size must be even for RoPE, got %d", r->path,
                          m->head_dim);
    return ATTAR_OK;
}

// Keys whose other values mean mathematics that forward.c does not do.
static attar_status check_unsupported(reader *r) {
    attar_model *m = r->model;
    int32_t value;
    attar_status status = read_int(r, "attention.value_length", m->head_dim, m->head_dim, m->head_dim, &value);
    if (status == ATTAR_OK) status = read_int(r, "rope.dimension_count", m->head_dim, m->head_dim, m->head_dim, &value);
    if (status == ATTAR_OK) status = read_int(r, "expert_count", 0, 0, 0, &value);
    bool causal = true;
    if (status == ATTAR_OK && gguf_get_bool(find(r, "attention.causal"), &causal) && !causal)
        status = attar_fail(r->error, ATTAR_ERROR_MODEL, "%s: %s must be true: only causal decoders run", r->path,
                            r->key);
    return status;
}

static attar_status read_scales(reader *r) {
    attar_model *m = r->model;
    const attar_family *family = m->family;
    double eps = 0, attention_cap = 0, final_cap = 0;
    attar_status status = read_float(r, "attention.layer_norm_rms_epsilon", 0.0, -1.0, &eps);
    if (status == ATTAR_OK)
        status = read_float(r, "attn_logit_softcapping", 0.0, family->default_attention_cap, &attention_cap);
    if (status == ATTAR_OK)
        status = read_float(r, "final_logit_softcapping", 0.0, family->default_final_cap, &final_cap);
    m->rms_eps = (float)eps;
    m->attention_cap = (float)attention_cap;
    m->final_cap = (float)final_cap;
    // No key of these families states the query scale; readers go by the depth, and so does this one.
    const int32_t width = m->n_layers == family->wide_query_layers ? m->n_embd / m->n_heads : m->head_dim;
    m->query_scale = (float)(1.0 / sqrt(width));
    return status;
}

static bool is(gguf_string s, const char *word) { return s.length == strlen(word) && memcmp(s.data, word, s.length) == 0; }

// The pair that turns `rotations` times within the trained context (YaRN, appendix A.2, as its code has it).
static double yarn_pair(const attar_model *m, double trained, double rotations) {
    return m->head_dim * log(trained / (rotations * 2.0 * 3.14159265358979323846)) / (2.0 * log(m->rope_base));
}

// Peng et al., 2023, arXiv:2309.00071: pairs that turn often keep their frequency, slow ones are interpolated, and
// cosines and sines grow by 0.1 ln(factor) + 1.
static attar_status read_yarn(reader *r, double factor) {
    attar_model *m = r->model;
    double fast = 0, slow = 0, attention = 0;
    int32_t trained = 0;
    attar_status status =
        read_int(r, "rope.scaling.original_context_length", 1, MAX_CONTEXT, m->n_ctx_train, &trained);
    if (status == ATTAR_OK) status = read_float(r, "rope.scaling.yarn_beta_fast", 0.001, 32.0, &fast);
    if (status == ATTAR_OK) status = read_float(r, "rope.scaling.yarn_beta_slow", 0.001, 1.0, &slow);
    if (status == ATTAR_OK) status = read_float(r, "rope.scaling.attn_factor", 0.001, 1.0, &attention);
    if (status != ATTAR_OK) return status;
    if (factor < 1.0 || m->rope_base <= 1.0)
        return attar_fail(r->error, ATTAR_ERROR_MODEL, "%s: YaRN needs rope.scaling.factor >= 1 and rope.freq_base > 1, got %g and %g",
                          r->path, factor, m->rope_base);
    m->yarn = true;
    m->yarn_low = fmax(floor(yarn_pair(m, trained, fast)), 0.0);
    m->yarn_high = fmin(ceil(yarn_pair(m, trained, slow)), m->head_dim - 1.0);
    m->rope_magnitude = attention * (0.1 * log(factor) + 1.0);
    const double reach = fmin(trained * factor, MAX_CONTEXT);
    if (reach > m->n_ctx_train) m->n_ctx_train = (int32_t)reach;
    return ATTAR_OK;
}

static attar_status read_rope(reader *r) {
    attar_model *m = r->model;
    attar_status status = read_float(r, "rope.freq_base", 1.0, 10000.0, &m->rope_base);
    if (status != ATTAR_OK) return status;
    double local = m->family->default_local_base > 0.0 ? m->family->default_local_base : m->rope_base;
    status = read_float(r, "rope.freq_base_swa", 1.0, local, &m->rope_local_base);
    double factor = 1.0;
    if (status == ATTAR_OK) status = read_float(r, "rope.scaling.factor", 0.0, 1.0, &factor);
    if (status != ATTAR_OK) return status;
    gguf_string kind = {"none", 4};
    const bool stated = gguf_get_string(find(r, "rope.scaling.type"), &kind), yarn = is(kind, "yarn");
    const bool linear = is(kind, "linear");
    if (!linear && !yarn && !is(kind, "none"))
        return attar_fail(r->error, ATTAR_ERROR_MODEL, "%s: %s must be none, linear or yarn, got \"%.*s\"", r->path,
                          r->key, kind.length < 64 ? (int)kind.length : 64, kind.data);
    // A factor without a type means linear (older converters); a stated "none" switches it off; 0 means unscaled.
    const bool scaled = (linear || yarn || !stated) && factor > 0.0;
    m->rope_scale = scaled ? 1.0 / factor : 1.0;
    m->rope_local_scale = m->family->scale_local_rope ? m->rope_scale : 1.0;
    m->rope_magnitude = 1.0;
    return yarn && scaled ? read_yarn(r, factor) : ATTAR_OK;
}

// Reads attention.sliding_window_pattern: a period (every n-th layer is global) or one flag a layer (true: local).
static attar_status read_pattern(reader *r) {
    attar_model *m = r->model;
    const gguf_kv *kv = find(r, "attention.sliding_window_pattern");
    bool flags = kv && kv->type == GGUF_ARRAY;
    if (flags && (kv->element_type != GGUF_BOOL || kv->count != (uint64_t)m->n_layers))
        return attar_fail(r->error, ATTAR_ERROR_MODEL,
                          "%s: %s must be a period or %d booleans, got an array of %" PRIu64 " of type %d", r->path,
                          r->key, m->n_layers, kv->count, (int)kv->element_type);
    int32_t period = m->family->window_period;
    if (!flags) {
        attar_status status =
            read_int(r, "attention.sliding_window_pattern", 0, MAX_LAYERS, m->family->window_period, &period);
        if (status != ATTAR_OK) return status;
    }
    for (int32_t i = 0; i < m->n_layers; i++) {
        m->layers[i].local = flags ? kv->value[i] != 0 : period > 0 && (i + 1) % period != 0;
        m->n_local_layers += m->layers[i].local;
    }
    return ATTAR_OK;
}

static attar_status read_window(reader *r) {
    attar_model *m = r->model;
    const attar_family *family = m->family;
    attar_status status =
        read_int(r, "attention.sliding_window", 0, MAX_CONTEXT, family->default_window, &m->sliding_window);
    if (status == ATTAR_OK && family->window_period == 1) {
        // Decoders without local layers here; a window that the context cannot outgrow changes nothing.
        if (m->sliding_window > 0 && m->sliding_window < m->n_ctx_train)
            return attar_fail(r->error, ATTAR_ERROR_MODEL, "%s: %s must be absent: %s has no local layers here, got %d",
                              r->path, r->key, family->name, m->sliding_window);
        m->sliding_window = 0;
    }
    return status == ATTAR_OK && m->sliding_window > 0 ? read_pattern(r) : status;
}

attar_status attar_config_read(const char *path, attar_model *model, attar_error *error) {
    reader r = {.path = path, .model = model, .error = error};
    attar_status status = read_family(&r);
    if (status == ATTAR_OK) status = read_shapes(&r);
    if (status == ATTAR_OK) status = check_unsupported(&r);
    if (status == ATTAR_OK) status = read_scales(&r);
    if (status == ATTAR_OK) status = read_rope(&r);
    if (status != ATTAR_OK) return status;
    model->layers = calloc((size_t)model->n_layers, sizeof *model->layers);
    if (!model->layers) return attar_fail(error, ATTAR_ERROR_MEMORY, "%s: out of memory", path);
    return read_window(&r);
}
