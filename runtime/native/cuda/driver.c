/* driver.c: finding the driver at run time, so that the library also loads where there is none. */
#define _GNU_SOURCE
#include "driver.h"

#include <dlfcn.h>
#include <string.h>

#include "../internal.h"

static int find(void *library, const char *symbol, void *function) {
    void *found = dlsym(library, symbol);
    memcpy(function, &found, sizeof found); /* ISO C has no cast from data to functions */
    return found ? COIL_OK : coil_fail(COIL_DEVICE, "the NVIDIA driver lacks %s: update it", symbol);
}

int coil_driver_load(driver *driver) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL); /* never closed: it does not expect that */
    if (!library)
        return coil_fail(COIL_DEVICE, "this model runs on an NVIDIA GPU and its driver is not installed here (%s): install "
                         "it, or compile the model for a CPU", dlerror());
    int code = COIL_OK;
#define FIND(name, symbol, parameters)                                                                                 \
    if (!code) code = find(library, #symbol, &driver->name);
    DRIVER_FUNCTIONS(FIND)
#undef FIND
    return code;
}
