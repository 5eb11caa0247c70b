/* npy.h: NumPy's file format for arrays, versions 1 to 3: dense, C order, little endian. */
#ifndef COIL_NPY_H
#define COIL_NPY_H

#include <stddef.h>
#include <stdint.h>

enum { NPY_MAX_RANK = 32 };

typedef struct npy {
    char descr[8]; /* NumPy's name of the element type, such as "<f4" */
    int32_t rank;
    int64_t dims[NPY_MAX_RANK];
    const void *data;
    size_t bytes;
} npy;

/* Bytes of an element of an IR dtype, or 0 when there is no such dtype. */
size_t npy_element_bytes(const char *dtype);

/* NumPy's name of an IR dtype; bf16, which NumPy lacks, is two opaque bytes, as ml_dtypes writes it. */
const char *npy_descr(const char *dtype);

/* Whether a file with elements `descr` holds an IR dtype; bf16 may also come as raw 16-bit integers. */
int npy_holds(const char *descr, const char *dtype);

/* Read an array from a file's content, to which it then points. Returns NULL, or what is wrong with it. */
const char *npy_parse(const void *content, size_t size, npy *array);

/* Write `data` to a new file. Returns 0, or an errno. */
int npy_write(const char *path, const char *dtype, int32_t rank, const int64_t *dims, const void *data);

#endif
