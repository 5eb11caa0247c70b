/* Any bytes as an .npy file: what is accepted lies inside the file and is as large as its shape says. */
#include "fuzz.h"
#include "npy.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    npy array;
    const char *wrong = npy_parse(data, size, &array);
    if (wrong) return 0;
    REQUIRE(array.rank >= 0 && array.rank <= NPY_MAX_RANK && memchr(array.descr, 0, sizeof array.descr));
    const uint8_t *first = array.data;
    REQUIRE(first >= data && first <= data + size && array.bytes == (size_t)(data + size - first));
    static const char *const DTYPES[] = {"f32", "f64", "f16", "bf16", "i64", "i32", "i16", "i8", "u8", "bool", "c64", "c128"};
    int holders = 0;
    for (size_t i = 0; i < sizeof DTYPES / sizeof *DTYPES; i++) {
        if (!npy_holds(array.descr, DTYPES[i])) continue;
        size_t bytes = npy_element_bytes(DTYPES[i]);
        for (int32_t axis = 0; axis < array.rank; axis++) {
            REQUIRE(array.dims[axis] >= 0);
            bytes *= (size_t)array.dims[axis];
        }
        REQUIRE(bytes == array.bytes);
        holders++;
    }
    REQUIRE(holders);
    touch(array.data, array.bytes);
    return 0;
}
