// Reading what XLA hands over.
#ifndef ATTAR_CALL_VALUES_H
#define ATTAR_CALL_VALUES_H

#include "xla_call.h"

#include <stdbool.h>

static inline xla_error *refuse(const xla_call *call, const char *message) {
    xla_error_create asked = {sizeof asked, NULL, message, XLA_INVALID_ARGUMENT};
    return ((xla_error_create_function)call->api->functions[XLA_ERROR_CREATE])(&asked);
}

// Whether the call asks what a function needs, which is answered, or is no call to compute.
static inline bool is_inquiry(const xla_call *call) {
    if (call->extensions && call->extensions->type == XLA_EXTENSION_METADATA) {
        xla_metadata *metadata = ((xla_metadata_extension *)(void *)call->extensions)->metadata;
        metadata->version.major = XLA_MAJOR_VERSION;
        metadata->version.minor = XLA_MINOR_VERSION;
        metadata->traits = 0;
        return true;
    }
    return call->stage != XLA_STAGE_EXECUTE;
}

// The buffer of this type and rank, or NULL.
static inline const xla_buffer *buffer_of(const xla_values *values, int64_t index, int dtype, int64_t rank) {
    if (index >= values->size || values->types[index] != XLA_ARGUMENT_BUFFER) return NULL;
    const xla_buffer *buffer = values->values[index];
    return buffer->dtype == dtype && buffer->rank == rank ? buffer : NULL;
}

#if defined(_WIN32)
#define XLA_FUNCTION __declspec(dllexport)
#else
#define XLA_FUNCTION __attribute__((visibility("default")))
#endif

#endif
