/* Functions for which the compiler makes variants for newer processors; the loader chooses. */
#ifndef TEC_FASTEST_H
#define TEC_FASTEST_H

#include <stdint.h> /* says whether the C library is glibc, whose loader can choose */

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FASTEST __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FASTEST
#endif

#endif
