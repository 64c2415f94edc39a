#include "key_scales.h"

#include <math.h>

#include "weights.h"

// The mean square of dimension j of KV head kv, before rotation. k_norm's input has mean square 1; without one, so has
// attn_norm's input, whose values are taken as independent.
static float mean_square(const attar_model *model, const attar_layer *layer, int32_t kv, int32_t j, float *row) {
    if (layer->k_norm) return layer->k_norm[j] * layer->k_norm[j];
    const int32_t index = kv * model->head_dim + j;
    const float bias = layer->k_bias ? layer->k_bias[index] : 0.0F;
    float sum = bias * bias;
    attar_weight_row(&layer->k, index, row);
    for (int32_t i = 0; i < model->n_embd; i++) {
        const float product = row[i] * layer->attn_norm[i];
        sum += product * product;
    }
    return sum;
}

// keys, queries [H] of one KV head.
static void head_scales(const attar_model *model, const attar_layer *layer, int32_t kv, float *row, float *keys,
                        float *queries) {
    const int32_t H = model->head_dim, half = H / 2;
    float total = 0.0F;
    for (int32_t j = 0; j < H; j++) total += queries[j] = mean_square(model, layer, kv, j, row);
    const float least = 1e-3F * total / (float)H + 1e-20F;  // a dimension that is always zero is not to be blown up
    for (int32_t j = 0; j < half; j++) {
        const int32_t a = model->family->interleaved_rope ? 2 * j : j, b = model->family->interleaved_rope ? a + 1 : j + half;
        const float size = sqrtf(0.5F * (queries[a] + queries[b]) + least);
        keys[a] = keys[b] = 1.0F / size;
        queries[a] = queries[b] = size * model->query_scale;
    }
}

void attar_key_scales(const attar_model *model, float *row, float *out) {
    const int64_t H = model->head_dim, n_heads = (int64_t)model->n_layers * model->n_kv_heads;
    for (int64_t i = 0; i < n_heads; i++) {
        const attar_layer *layer = &model->layers[i / model->n_kv_heads];
        head_scales(model, layer, (int32_t)(i % model->n_kv_heads), row, out + i * H, out + (n_heads + i) * H);
    }
}
