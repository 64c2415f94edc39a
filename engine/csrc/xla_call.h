// What a function that XLA calls on a CPU needs of XLA's foreign function interface: its C binary interface, version 0.
// Only the layout is declared, so that building attar needs nothing of XLA. Each structure may have grown at its end in
// the XLA that calls; `struct_size` says how large the caller's is.
#ifndef ATTAR_XLA_CALL_H
#define ATTAR_XLA_CALL_H

#include <stddef.h>
#include <stdint.h>

enum { XLA_MAJOR_VERSION = 0, XLA_MINOR_VERSION = 1 };
enum { XLA_EXTENSION_METADATA = 1 };
enum { XLA_STAGE_EXECUTE = 3 };
enum { XLA_ARGUMENT_BUFFER = 1 };
enum { XLA_S32 = 4, XLA_F32 = 11 };
enum { XLA_INVALID_ARGUMENT = 3 };
// Places in the table of functions.
enum {
    XLA_ERROR_CREATE = 0,
    XLA_ERROR_DESTROY = 2,
    XLA_POOL_SCHEDULE = 11,
    XLA_POOL_NUM_THREADS = 12,
    XLA_N_FUNCTIONS = 13
};

typedef struct xla_error xla_error;
typedef struct xla_context xla_context;

typedef struct xla_extension {
    size_t struct_size;
    int type;
    struct xla_extension *next;
} xla_extension;

typedef struct xla_version {
    size_t struct_size;
    xla_extension *extensions;
    int major, minor;
} xla_version;

// Asked of a function when it is registered.
typedef struct xla_metadata {
    size_t struct_size;
    xla_version version;
    uint32_t traits;
} xla_metadata;

typedef struct xla_metadata_extension {
    xla_extension base;
    xla_metadata *metadata;
} xla_metadata_extension;

typedef struct xla_api {
    size_t struct_size;
    xla_extension *extensions;
    xla_version version;
    const void *internal;
    void (*functions[XLA_N_FUNCTIONS])(void);
} xla_api;

typedef struct xla_buffer {
    size_t struct_size;
    xla_extension *extensions;
    int dtype;
    void *data;
    int64_t rank;
    int64_t *dims;
} xla_buffer;

// Arguments, or results.
typedef struct xla_values {
    size_t struct_size;
    xla_extension *extensions;
    int64_t size;
    int *types;
    void **values;
} xla_values;

typedef struct xla_call {
    size_t struct_size;
    xla_extension *extensions;
    const xla_api *api;
    xla_context *context;
    int stage;
    xla_values arguments;
    xla_values results;
} xla_call;

typedef struct xla_error_create {
    size_t struct_size;
    xla_extension *extensions;
    const char *message;
    int code;
} xla_error_create;

typedef struct xla_error_destroy {
    size_t struct_size;
    xla_extension *extensions;
    xla_error *error;
} xla_error_destroy;

typedef struct xla_pool_schedule {
    size_t struct_size;
    xla_extension *extensions;
    xla_context *context;
    void (*task)(void *);
    void *data;
} xla_pool_schedule;

typedef struct xla_pool_num_threads {
    size_t struct_size;
    xla_extension *extensions;
    xla_context *context;
    int64_t *num_threads;
} xla_pool_num_threads;

typedef xla_error *(*xla_error_create_function)(xla_error_create *);
typedef void (*xla_error_destroy_function)(xla_error_destroy *);
typedef xla_error *(*xla_pool_schedule_function)(xla_pool_schedule *);
typedef xla_error *(*xla_pool_num_threads_function)(xla_pool_num_threads *);

#endif
