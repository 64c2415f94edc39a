// config.h: reads a model's hyperparameters from GGUF metadata.
#ifndef ATTAR_CONFIG_H
#define ATTAR_CONFIG_H

#include "model.h"

// Fills family and every hyperparameter of `model` from model->file, and layers[i].local. n_vocab is the tensor's
// business (model.c). `path` names the file in messages.
attar_status attar_config_read(const char *path, attar_model *model, attar_error *error);

#endif
