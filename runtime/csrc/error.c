#include "error.h"

#include <stdarg.h>
#include <stdio.h>

attar_status attar_fail(attar_error *error, attar_status status, const char *format, ...) {
    if (error && error->status == ATTAR_OK) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(error->message, sizeof error->message, format, arguments);
        va_end(arguments);
        error->status = status;
    }
    return status;
}
