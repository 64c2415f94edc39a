// model.h: a decoder's hyperparameters and weights, as forward.c reads them.
//
// Built once from a checked GGUF file: every tensor's shape agrees with the hyperparameters, every pointer lies inside
// the mapping, and no tensor of the file is left unused. attar_model_load then brings the weights into memory
// (weights.h). Dimension letters as in forward.h.
#ifndef ATTAR_MODEL_H
#define ATTAR_MODEL_H

#include <pthread.h>

#include "gguf.h"
#include "kernels.h"
#include "weights.h"

// What an architecture is. Everything that differs between families is a field here, never a branch on the name.
typedef struct {
    const char *name;              // value of general.architecture
    bool interleaved_rope;         // pairs (2j, 2j + 1): the converter permuted q and k rows for it
    bool scale_embeddings;         // token embeddings are multiplied by sqrt(D)
    bool gelu;                     // GeGLU, else SwiGLU
    bool post_norms;               // RMSNorm on each branch's output before the residual add
    bool qk_norm;                  // RMSNorm over H on q and k before RoPE
    bool qkv_bias;                 // biases on q, k and v
    int32_t window_period;         // every window_period-th layer is global, the others local; 1: all global
    int32_t default_window;        // sliding window where the file states none; 0: no local layers then
    double default_local_base;     // RoPE base of local layers where the file states none; 0: as global layers
    bool scale_local_rope;         // rope.scaling.* applies to local layers too
    float default_attention_cap;   // soft caps where the file states none; 0: none
    float default_final_cap;
    int32_t wide_query_layers;     // the one depth whose query scale is (D / N)^-1/2 instead of H^-1/2 (Gemma 27B)
} attar_family;

typedef struct {
    attar_weight q, k, v;                                // [N*H, D], [K*H, D], [K*H, D]
    attar_weight o;                                      // [D, N*H]
    attar_weight gate, up;                               // [F, D]
    attar_weight down;                                   // [D, F]
    const float *attn_norm, *ffn_norm;                   // [D]
    const float *post_attention_norm, *post_ffw_norm;    // [D], NULL without post_norms
    const float *q_norm, *k_norm;                        // [H], NULL without qk_norm
    const float *q_bias, *k_bias, *v_bias;               // [N*H], [K*H], [K*H], NULL without qkv_bias
    bool local;                                          // sliding-window attention
} attar_layer;

struct attar_model {
    gguf_file *file;
    const attar_family *family;
    int32_t n_vocab, n_embd, n_ff, n_layers, n_heads, n_kv_heads, head_dim;  // V D F L N K H
    int32_t n_ctx_train;                  // tokens
    int32_t sliding_window;               // keys a local layer's query sees, itself included; 0 without local layers
    int32_t n_local_layers;
    float rms_eps, query_scale, attention_cap, final_cap;  // caps: 0 is none
    double rope_base, rope_local_base;
    double rope_scale, rope_local_scale;  // factors on every frequency (1 / rope.scaling.factor)
    bool yarn;                            // rope_scale applies from pair yarn_low on more and more, whole from yarn_high
    double yarn_low, yarn_high;           // pairs
    double rope_magnitude;                // factor on the cosines and sines of global layers; 1 without YaRN
    const float *rope_freqs;              // [H/2] divisors of the global layers' frequencies, or NULL (Llama 3)

    attar_weight embed;                   // [V, D]
    attar_weight head;                    // [V, D]; the embedding again where `tied`
    bool tied;                            // the file has no output.weight
    const float *output_norm;             // [D]
    attar_layer *layers;                  // [L]
    uint64_t weight_bytes, n_parameters;  // weight_bytes: of the tensors in the file
    attar_weights weights;
    pthread_mutex_t loading;              // held while the weights are brought into memory
};

// Brings the weights into memory unless they are there; the first session's pool does the work for all.
attar_status attar_model_load(attar_model *model, attar_pool *pool, attar_error *error);

// Bytes that the loaded weights occupy, before or after loading.
uint64_t attar_model_loaded_bytes(const attar_model *model);

#endif
