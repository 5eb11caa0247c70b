/* errors.c: one sentence per thread about its last failure. */
#include "internal.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char message[MESSAGE_BYTES];

int coil_fail(coil_status status, const char *format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(message, sizeof message, format, values);
    va_end(values);
    return (int)status;
}

const char *coil_error_message(void) { return message; }
