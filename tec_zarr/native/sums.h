/* Planes of magnitudes, their sums around each block, and the logarithms that the context network
 * sees of both. They are kept beside the sums, so that each is computed once. Sums stop at MOST_SUM,
 * where their logarithms do. */
#ifndef TEC_SUMS_H
#define TEC_SUMS_H

#include <stddef.h>
#include <stdint.h>

#include "context.h"

#define MARGIN 2      /* zeros before each row, and rows of zeros before the first one */

/* Values of a plane and their sums around each block, with the logarithms of both. */
typedef struct {
    int16_t *sum, *near;
    uint8_t *log, *near_log;
    int count; /* of values that are not zero */
} Sums;

#define BYTES_OF_VALUE 6     /* of a Sums */
#define BYTES_WITH_MARGINS 3 /* of these, in front: of sum and log, whose margins are read */

typedef struct {
    int rows, cols, pitch; /* the margin of a row lies right of the one before, too */
    size_t plane, start;   /* values of a plane; where its first block is */
} Shape;

static inline Sums sums_at(uint8_t *room, const Shape *s) {
    int16_t *sum = (int16_t *)(void *)room;
    uint8_t *log = room + 2 * s->plane;
    Sums out = {sum, (int16_t *)(void *)(log + s->plane), log, log + 3 * s->plane, 0};
    return out;
}

/* A sum of magnitudes, which is below 2^15, as it is kept. */
static inline int16_t capped(int16_t sum) { return sum < MOST_SUM ? sum : MOST_SUM; }

static inline void add_around(const Shape *s, const int16_t *sum, int16_t *near) {
    int pitch = s->pitch;
    size_t end = s->start + (size_t)s->rows * pitch;
    for (size_t i = s->start; i < end; i++) {
        const int16_t *at = sum + i, *up = at - pitch, *down = at + pitch;
        int16_t all = (int16_t)(up[-1] + up[0] + up[1] + at[-1] + at[1] + down[-1] + down[0] + down[1]);
        near[i] = capped(all);
    }
}

static inline void add_to(const Shape *s, Sums *to, const Sums *more) {
    size_t end = s->start + (size_t)s->rows * s->pitch;
    for (size_t i = s->start; i < end; i++) {
        to->sum[i] = capped((int16_t)(to->sum[i] + more->sum[i]));
        to->near[i] = capped((int16_t)(to->near[i] + more->near[i]));
    }
    to->count += more->count;
}

static inline void take_logs(const Shape *s, const Net *net, const int16_t *of, uint8_t *log) {
    net->take_logs(net, of + s->start, (size_t)s->rows * s->pitch, log + s->start);
}

static inline void take_both_logs(const Shape *s, const Net *net, Sums *of) {
    take_logs(s, net, of->sum, of->log);
    take_logs(s, net, of->near, of->near_log);
}

/* The logarithms of the sum of two planes, of which either may be zero. */
static inline const uint8_t *log_of_two(const Shape *s, const Net *net, const Sums *a, const Sums *b, int near,
                                 Sums *room) {
    if (!a->count) return near ? b->near_log : b->log;
    if (!b->count) return near ? a->near_log : a->log;
    const int16_t *x = near ? a->near : a->sum, *y = near ? b->near : b->sum;
    int16_t *sum = near ? room->near : room->sum;
    uint8_t *log = near ? room->near_log : room->log;
    size_t end = s->start + (size_t)s->rows * s->pitch;
    for (size_t i = s->start; i < end; i++) sum[i] = capped((int16_t)(x[i] + y[i]));
    take_logs(s, net, sum, log);
    return log;
}

#endif
