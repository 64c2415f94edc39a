#include "model.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config.h"
#include "error.h"
#include "tokenizer.h"

// Takes tensors out of the file one by one, so that what is left over in the end can be named.
typedef struct {
    const char *path;
    attar_model *model;
    attar_error *error;
    bool *used;     // [tensors in the file]
    int32_t layer;  // for the names "blk.<layer>.<suffix>"; -1 outside the layers
} binder;

static attar_status find_tensor(binder *b, const char *suffix, bool optional, const gguf_tensor **out) {
    char name[64];
    if (b->layer < 0)
        snprintf(name, sizeof name, "%s", suffix);
    else
        snprintf(name, sizeof name, "blk.%d.%s", b->layer, suffix);
    *out = gguf_find_tensor(b->model->file, name);
    if (*out) b->used[*out - gguf_tensor_at(b->model->file, 0)] = true;
    if (*out || optional) return ATTAR_OK;
    return attar_fail(b->error, ATTAR_ERROR_MODEL, "%s: tensor %s is missing", b->path, name);
}

static attar_status check_shape(binder *b, const gguf_tensor *t, int32_t rows, int32_t cols) {
    if (t->dims[0] == (uint64_t)cols && t->dims[1] == (uint64_t)rows && t->dims[2] == 1 && t->dims[3] == 1)
        return ATTAR_OK;
    return attar_fail(b->error, ATTAR_ERROR_MODEL,
                      "%s: tensor %.*s must be [%d, %d] as its metadata says, got [%" PRIu64 ", %" PRIu64 "]", b->path,
                      (int)t->name.length, t->name.data, rows, cols, t->dims[1], t->dims[0]);
}

// A matrix [rows, cols]. Absent optional ones leave *out alone.
static attar_status bind_matrix(binder *b, const char *suffix, int32_t rows, int32_t cols, bool optional,
                                attar_weight *out) {
    const gguf_tensor *t;
    attar_status status = find_tensor(b, suffix, optional, &t);
    if (status != ATTAR_OK || !t) return status;
    status = check_shape(b, t, rows, cols);
    if (status != ATTAR_OK) return status;
    *out = (attar_weight){t->data, attar_row_bytes(t->type, (uint64_t)cols), t->type, rows, cols};
    attar_weights_add_matrix(&b->model->weights, out);
    return ATTAR_OK;
}

// A float vector [n].
static attar_status bind_vector(binder *b, const char *suffix, int32_t n, bool optional, const float **out) {
    const gguf_tensor *t;
    attar_status status = find_tensor(b, suffix, optional, &t);
    if (status != ATTAR_OK || !t) return status;
    if (t->type != ATTAR_F32)
        return attar_fail(b->error, ATTAR_ERROR_MODEL, "%s: tensor %.*s must be F32, got %s", b->path,
                          (int)t->name.length, t->name.data, attar_type_get(t->type).name);
    status = check_shape(b, t, 1, n);
    if (status != ATTAR_OK) return status;
    *out = (const float *)(const void *)t->data;  // gguf_open checked its alignment
    attar_weights_add_vector(&b->model->weights, out, n);
    return ATTAR_OK;
}

static attar_status bind_layer(binder *b, attar_layer *layer) {
    const attar_model *m = b->model;
    const attar_family *family = m->family;
    const int32_t D = m->n_embd, F = m->n_ff, NH = m->n_heads * m->head_dim, KH = m->n_kv_heads * m->head_dim;
    attar_status status = bind_vector(b, "attn_norm.weight", D, false, &layer->attn_norm);
    if (status == ATTAR_OK) status = bind_matrix(b, "attn_q.weight", NH, D, false, &layer->q);
    if (status == ATTAR_OK) status = bind_matrix(b, "attn_k.weight", KH, D, false, &layer->k);
    if (status == ATTAR_OK) status = bind_matrix(b, "attn_v.weight", KH, D, false, &layer->v);
    if (status == ATTAR_OK) status = bind_matrix(b, "attn_output.weight", D, NH, false, &layer->o);
    if (status == ATTAR_OK) status = bind_vector(b, "ffn_norm.weight", D, false, &layer->ffn_norm);
    if (status == ATTAR_OK) status = bind_matrix(b, "ffn_gate.weight", F, D, false, &layer->gate);
    if (status == ATTAR_OK) status = bind_matrix(b, "ffn_up.weight", F, D, false, &layer->up);
    if (status == ATTAR_OK) status = bind_matrix(b, "ffn_down.weight", D, F, false, &layer->down);
    if (status == ATTAR_OK && family->post_norms) {
        status = bind_vector(b, "post_attention_norm.weight", D, false, &layer->post_attention_norm);
        if (status == ATTAR_OK) status = bind_vector(b, "post_ffw_norm.weight", D, false, &layer->post_ffw_norm);
    }
    if (status == ATTAR_OK && family->qk_norm) {
        status = bind_vector(b, "attn_q_norm.weight", m->head_dim, false, &layer->q_norm);
        if (status == ATTAR_OK) status = bind_vector(b, "attn_k_norm.weight", m->head_dim, false, &layer->k_norm);
    }
    if (status == ATTAR_OK && family->qkv_bias) {
        status = bind_vector(b, "attn_q.bias", NH, false, &layer->q_bias);
        if (status == ATTAR_OK) status = bind_vector(b, "attn_k.bias", KH, false, &layer->k_bias);
        if (status == ATTAR_OK) status = bind_vector(b, "attn_v.bias", KH, false, &layer->v_bias);
    }
    return status;
}

static attar_status bind_rope_freqs(binder *b) {
    attar_model *m = b->model;
    attar_status status = bind_vector(b, "rope_freqs.weight", m->head_dim / 2, true, &m->rope_freqs);
    for (int32_t j = 0; status == ATTAR_OK && m->rope_freqs && j < m->head_dim / 2; j++) {
        if (!isfinite(m->rope_freqs[j]) || m->rope_freqs[j] <= 0.0F)
            return attar_fail(b->error, ATTAR_ERROR_MODEL, "%s: tensor rope_freqs.weight must hold positive numbers, got %g",
                              b->path, (double)m->rope_freqs[j]);
    }
    return status;
}

static attar_status bind_vocabulary(binder *b) {
    attar_model *m = b->model;
    const gguf_tensor *embed;
    attar_status status = find_tensor(b, "token_embd.weight", false, &embed);
    if (status != ATTAR_OK) return status;
    if (embed->dims[1] > INT32_MAX)
        return attar_fail(b->error, ATTAR_ERROR_MODEL, "%s: token_embd.weight has too many rows: %" PRIu64, b->path,
                          embed->dims[1]);
    m->n_vocab = (int32_t)embed->dims[1];
    status = bind_matrix(b, "token_embd.weight", m->n_vocab, m->n_embd, false, &m->embed);
    if (status == ATTAR_OK) status = bind_matrix(b, "output.weight", m->n_vocab, m->n_embd, true, &m->head);
    m->tied = m->head.data == NULL;
    if (m->tied) m->head = m->embed;
    if (status == ATTAR_OK) status = bind_vector(b, "output_norm.weight", m->n_embd, false, &m->output_norm);
    if (status == ATTAR_OK) status = bind_rope_freqs(b);
    return status;
}

// A tensor that nothing reads means a network other than the one that forward.c computes.
static attar_status finish(binder *b) {
    attar_model *m = b->model;
    for (uint64_t i = 0; i < gguf_tensor_count(m->file); i++) {
        const gguf_tensor *t = gguf_tensor_at(m->file, i);
        if (!b->used[i])
            return attar_fail(b->error, ATTAR_ERROR_MODEL,
                              "%s: tensor %.*s has no place in the %s architecture that this runtime computes", b->path,
                              t->name.length < 128 ? (int)t->name.length : 128, t->name.data, m->family->name);
        m->weight_bytes += t->bytes;
        m->n_parameters += t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3];
    }
    return ATTAR_OK;
}

static attar_status bind_tensors(const char *path, attar_model *model, attar_error *error) {
    binder b = {path, model, error, calloc(gguf_tensor_count(model->file) + 1, sizeof(bool)), -1};
    if (!b.used) return attar_fail(error, ATTAR_ERROR_MEMORY, "%s: out of memory", path);
    attar_status status = attar_weights_init(&model->weights, gguf_tensor_count(model->file), error);
    if (status == ATTAR_OK) status = bind_vocabulary(&b);
    for (int32_t i = 0; i < model->n_layers && status == ATTAR_OK; i++) {
        b.layer = i;
        status = bind_layer(&b, &model->layers[i]);
    }
    if (status == ATTAR_OK) status = finish(&b);
    free(b.used);
    return status;
}

attar_status attar_model_open(const char *path, attar_model **out, attar_error *error) {
    *out = NULL;
    attar_model *model = calloc(1, sizeof *model);
    if (!model) return attar_fail(error, ATTAR_ERROR_MEMORY, "%s: out of memory", path);
    pthread_mutex_init(&model->loading, NULL);
    attar_status status = gguf_open(path, &model->file, error);
    if (status == ATTAR_OK) status = attar_config_read(path, model, error);
    if (status == ATTAR_OK) status = bind_tensors(path, model, error);
    if (status == ATTAR_OK)
        *out = model;
    else
        attar_model_free(model);
    return status;
}

void attar_model_free(attar_model *model) {
    if (!model) return;
    attar_weights_free(&model->weights);
    gguf_close(model->file);
    pthread_mutex_destroy(&model->loading);
    free(model->layers);
    free(model);
}

attar_status attar_model_load(attar_model *model, attar_pool *pool, attar_error *error) {
    attar_status status = ATTAR_OK;
    pthread_mutex_lock(&model->loading);
    if (!model->weights.memory) {
        status = attar_weights_load(&model->weights, model->file, pool, error);
        if (model->tied) model->head = model->embed;
    }
    pthread_mutex_unlock(&model->loading);
    return status;
}

uint64_t attar_model_loaded_bytes(const attar_model *model) {
    return model->weights.memory_bytes + model->weights.mapped_bytes;
}

static int32_t token_id(const attar_model *model, const char *key) {
    int64_t id = -1;
    bool known = gguf_get_i64(gguf_find(model->file, key), &id) && id >= 0 && id < model->n_vocab;
    return known ? (int32_t)id : -1;
}

void attar_model_get_info(const attar_model *model, attar_model_info *info) {
    *info = (attar_model_info){
        .n_vocab = model->n_vocab,
        .n_embd = model->n_embd,
        .n_ff = model->n_ff,
        .n_layers = model->n_layers,
        .n_heads = model->n_heads,
        .n_kv_heads = model->n_kv_heads,
        .head_dim = model->head_dim,
        .n_ctx_train = model->n_ctx_train,
        .sliding_window = model->sliding_window,
        .n_local_layers = model->n_local_layers,
        .file_bytes = gguf_size(model->file),
        .weight_bytes = model->weight_bytes,
        .n_parameters = model->n_parameters,
        .bos_token = token_id(model, "tokenizer.ggml.bos_token_id"),
        .eos_token = token_id(model, "tokenizer.ggml.eos_token_id"),
        .eot_token = token_id(model, "tokenizer.ggml.eot_token_id"),
    };
    snprintf(info->architecture, sizeof info->architecture, "%s", model->family->name);
}

const char *attar_model_metadata(const attar_model *model, const char *key, size_t *length) {
    gguf_string value;
    if (!gguf_get_string(gguf_find(model->file, key), &value)) return NULL;
    *length = (size_t)value.length;
    return value.data;
}

attar_status attar_tokenizer_create(const attar_model *model, attar_tokenizer **out, attar_error *error) {
    return attar_tokenizer_from_gguf(model->file, out, error);
}
