// error.h: filling the caller's error buffer. The first error wins.
#ifndef ATTAR_ERROR_H
#define ATTAR_ERROR_H

#include "attar.h"

#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
attar_status attar_fail(attar_error *error, attar_status status, const char *format, ...);

#endif
