#include "error.h"

#include <stdarg.h>
#include <stdio.h>

attar_status attar_fail(attar_error *error, attar_status status, const char *format, ...) {
    if (error && error->status == ATTAR_OK) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(error->message, sizeof error->message, format, arguments);
        va_end(arguments);
        // Names come from untrusted files; a control byte in one must not break the line.
        for (char *c = error->message; *c; c++)
            if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
        error->status = status;
    }
    return status;
}
