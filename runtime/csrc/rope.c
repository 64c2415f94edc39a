#include "rope.h"

#include <math.h>

// How much of pair j's frequency is interpolated: 0 keeps it, 1 scales it whole (YaRN, equation 18, in dimensions).
static double interpolated_share(const attar_model *model, int32_t j) {
    if (!model->yarn) return 1.0;
    const double width = fmax(model->yarn_high - model->yarn_low, 1e-3);
    return fmin(fmax((j - model->yarn_low) / width, 0.0), 1.0);
}

void attar_rope_frequencies(const attar_model *model, double *out) {
    const int32_t half = model->head_dim / 2;
    for (int32_t j = 0; j < half; j++) {
        const double exponent = -2.0 * j / model->head_dim;
        const double divisor = model->rope_freqs ? model->rope_freqs[j] : 1.0;
        const double share = interpolated_share(model, j);
        out[j] = pow(model->rope_base, exponent) * (share * model->rope_scale + (1.0 - share)) / divisor;
        out[half + j] = pow(model->rope_local_base, exponent) * model->rope_local_scale;
    }
}

void attar_rope_angles(const attar_model *model, bool local, const double *frequencies, int32_t position,
                       float *cosines, float *sines) {
    const double magnitude = local ? 1.0 : model->rope_magnitude;
    for (int32_t j = 0; j < model->head_dim / 2; j++) {
        const double angle = position * frequencies[j];
        cosines[j] = (float)(cos(angle) * magnitude);
        sines[j] = (float)(sin(angle) * magnitude);
    }
}
