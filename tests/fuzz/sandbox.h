/* sandbox.h: what every file of coil-run is compiled behind in the target `program`, so that a run of the whole program
 * leaves nothing behind: files are parts of the input, memory is taken back, no thread starts, its end is a jump back. */
#ifndef FUZZ_SANDBOX_H
#define FUZZ_SANDBOX_H

#define exit fuzz_exit
#define main coil_main

#define malloc fuzz_malloc
#define calloc fuzz_calloc
#define aligned_alloc fuzz_aligned_alloc
#define free fuzz_free
#define mmap fuzz_mmap
#define munmap fuzz_munmap

#define open fuzz_open
#define fopen fuzz_fopen
#define mkdir fuzz_mkdir

#define clock_gettime fuzz_clock_gettime
#define pthread_create fuzz_pthread_create
#define sched_getaffinity fuzz_sched_getaffinity

#define FREE_STATES /* they also come as arrays, of which the runtime promises nothing */

#endif
