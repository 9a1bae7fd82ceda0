/* How a sample is predicted: inputs, and weights fitted to what was decoded; planes_fit.c. */
#ifndef TEC_PLANES_FIT_H
#define TEC_PLANES_FIT_H

#include "planes.h"

#define SEGMENT 128      /* samples that are coded with the same weights, or nearly so many */
#define SEGMENT_ROOM 192 /* no segment is longer */
#define OWN 15
#define INPUTS 72 /* at most; a multiple of 4 */
#define LIMIT 8191 /* of an input */
#define WEIGHT_BITS 13

/* Sums of products of the samples of a range of columns, recent rows counting more, and what follows. */
typedef struct {
    int64_t gram[INPUTS][INPUTS], right[INPUTS];
    int32_t weights[INPUTS];
    int since, begun; /* samples since the last fit; it was reached */
} Stripe;

typedef struct {
    const int32_t *weights;     /* of this segment */
    int32_t at[SEGMENT_ROOM];   /* what the reference planes add to a prediction */
    int16_t x[INPUTS][SEGMENT_ROOM], scaled[INPUTS + 1][SEGMENT_ROOM], missing[SEGMENT_ROOM];
    int16_t scale[SEGMENT_ROOM];
    int64_t gram[INPUTS][INPUTS], right[INPUTS]; /* of a stripe and those beside it */
    int32_t small[INPUTS][INPUTS];
    Stripe *stripes, *stripe;
    int inputs, count, segments, size; /* stripes, segments of each, samples of a segment */
    int ridge;
} Fit;

static inline int16_t input(int32_t twice, int shift) {
    int32_t x = twice >> shift;
    return (int16_t)(x < -LIMIT ? -LIMIT : x > LIMIT ? LIMIT : x);
}

/* `least`: the smallest bound of a sample that is coded. */
Fit *tec_fit_begin(const Task *task, uint64_t least);
void tec_fit_end(Fit *fit);

/* Before a segment: its weights, and the inputs that are other planes. */
void tec_fit_segment(Fit *fit, const Task *task, int y, int x0, int count);

/* After a segment, of which `coded` samples were coded. */
void tec_fit_learn(Fit *fit, int count, int coded);

#endif
