/* The public interface of the core. */
#ifndef TEC_H
#define TEC_H

#include <stdint.h>

enum {
    TEC_OK = 0,
    TEC_NO_MEMORY = -1,
    TEC_DAMAGED = -2,  /* the bytes are not what an encoder writes */
    TEC_TOO_SMALL = -3, /* the output does not fit into the buffer of the caller */
    TEC_BAD_ARGUMENT = -4,
};

#endif
