/* Functions for which the compiler makes variants for newer processors; the loader chooses. */
#ifndef TEC_FASTEST_H
#define TEC_FASTEST_H

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define FASTEST __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FASTEST
#endif

#endif
