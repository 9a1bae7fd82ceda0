/* How often each value of a plane was seen: values that never occur cost nothing; planes_comb.c. */
#ifndef TEC_PLANES_COMB_H
#define TEC_PLANES_COMB_H

#include "planes.h"

#define COMB_RANGE 16383 /* at most */

typedef struct {
    uint32_t *counts, *sums; /* of each value, 16 for each time; of all values below it, with priors */
    int64_t range;           /* values are 0 .. range */
    int since;               /* samples that `sums` do not know yet */
} Comb;

int tec_comb_begin(Comb *comb, int64_t range);
void tec_comb_end(Comb *comb);

static inline void tec_comb_count(Comb *comb, int64_t value) {
    comb->counts[value] += 16;
    comb->since++;
}

/* After a row: `sums` learn of its samples. */
void tec_comb_settle(Comb *comb);

/* Encoder: does it pay to know which values occur? */
int tec_comb_pays(const Task *task, int *pays);

/* As tec_code_symbol, of value - predicted. */
int64_t tec_code_combed(Coder *coder, Symbols *symbols, const Comb *comb, int scale, int side,
                        int64_t predicted, int64_t number);

#endif
