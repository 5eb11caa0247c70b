/* Any command line of coil-run. `exit` is replaced by a jump back, `die` included. */
#include <setjmp.h>

#include "fuzz.h"
#include "options.h"

enum { MOST = 256 };
static jmp_buf back;

_Noreturn void fuzz_exit(int code) {
    REQUIRE(code == 0 || code == EXIT_INPUT);
    longjmp(back, 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static FILE *nowhere;
    if (!nowhere) nowhere = stdout = stderr = fopen("/dev/null", "w");
    static char text[1 << 12];
    char *argv[MOST + 2] = {"coil-run"};
    int argc = 1;
    if (size >= sizeof text) return 0;
    memcpy(text, data, size);
    text[size] = 0;
    for (char *at = text; at < text + size && argc < MOST; at += strlen(at) + 1) argv[argc++] = at;
    if (setjmp(back)) return 0;
    options found = read_options(argc, argv);
    REQUIRE(found.threads >= 1 && found.threads <= 1024 && found.runs >= 1 && found.inputs.count <= MAX_PAIRS);
    for (int32_t i = 0; i < found.inputs.count; i++) REQUIRE(*found.inputs.items[i].name && found.inputs.items[i].value);
    for (int32_t i = 0; i < found.dims.count; i++) REQUIRE(*found.dims.items[i].name && found.dims.items[i].value);
    REQUIRE(found.temperature >= 0 && found.top_p >= 0 && found.top_p <= 1 && found.tokens >= 1 && found.seed >= 0);
    return 0;
}
