/* From the values of components to the coefficients of bands. */
#include <stdlib.h>
#include <string.h>

#include "fastest.h"
#include "lanes.h"
#include "tile.h"

void *tec_room(uint64_t count, size_t each) {
    return count > (SIZE_MAX - 64) / each ? 0 : malloc((size_t)count * each + 64);
}

void *tec_zeros(uint64_t count, size_t each) {
    return count > (SIZE_MAX - 64) / each ? 0 : calloc(count + 64 / each, each);
}

int tec_value_planes(const TecModel *m, const Spectrum *s) {
    int count = 0;
    for (int class = 0; class < CLASSES; class++)
        count += (m->first[class + 1] - m->first[class]) * s->bases[class].components;
    return count;
}

void tec_walk_inputs(const Spectrum *s, int quality, int prediction, int32_t components[CLASSES],
                     int32_t spreads[CLASSES * MOST_BANDS], int *kind, int *fineness) {
    for (int class = 0; class < CLASSES; class++) {
        const Basis *basis = &s->bases[class];
        components[class] = basis->components;
        for (int k = 0; k < MOST_BANDS; k++)
            spreads[class * MOST_BANDS + k] = k < basis->components ? basis->spreads[k] : 0;
    }
    *kind = (s->layout.fine < s->layout.bands ? 64 : 0) + prediction;
    int fine = (quality - FIRST_QUALITY + 128) >> 8;
    *fineness = fine > 127 ? 127 : fine;
}

static int64_t gain_of(const TecModel *m, const Layout *l, int band, int u, int v) {
    int kind = l->level[band] ? 1 + l->grids[band].kind : 0;
    const int32_t *gain = m->gains[kind][l->cells[band].factor - 1];
    return (int64_t)gain[u] * gain[v];
}

double tec_gain(const TecModel *m, const Layout *l, int band, int u, int v) {
    return (double)gain_of(m, l, band, u, v);
}

double tec_factor(const TecModel *m, const Layout *l, int band, int u, int v, int64_t step) {
    int64_t product = gain_of(m, l, band, u, v);
    return (double)((((uint64_t)step << 39) + (uint64_t)product) / (2 * (uint64_t)product));
}

/* sums += the magnitudes of coefficients, times a factor, in 1/32 step. */
FASTEST static void add_magnitudes(const int32_t *coefficients, double factor, int count, int32_t *sums) {
    for (int i = 0; i < count; i++) {
        double size = coefficients[i] < 0 ? -(double)coefficients[i] : (double)coefficients[i];
        double part = size * factor * (1.0 / (1 << 26));
        sums[i] += (int32_t)(part > 65536 ? 65536 : part);
    }
}

int16_t *tec_hints(const TecModel *m, const Layout *l, int64_t step, const Coefficients *guess) {
    int64_t blocks = (int64_t)l->rows * l->cols;
    int16_t *out = tec_zeros((uint64_t)FREQUENCIES * (uint64_t)blocks, sizeof *out);
    int32_t *sums = tec_room((uint64_t)l->cols, sizeof *sums);
    for (int f = 0; f < FREQUENCIES && out && sums; f++) {
        Frequency at = m->frequencies[f];
        int64_t first = at.u * MOST_SIZE + at.v;
        for (int r = 0; r < l->rows; r++) {
            if (!guess->alive[first * l->rows + r]) continue;
            memset(sums, 0, sizeof *sums * (size_t)l->cols);
            for (int i = 0; i < tec_bands_of(l, at.class); i++) {
                int band = l->order[i], size = MOST_SIZE >> l->level[band];
                int64_t inverse = ((int64_t)1 << 39) / (int64_t)tec_factor(m, l, band, at.u, at.v, step);
                add_magnitudes(guess->of[band] + (at.u * size + at.v) * blocks + (int64_t)r * l->cols,
                               (double)inverse, l->cols, sums);
            }
            int16_t *row = out + first * blocks + (int64_t)r * l->cols;
            for (int c = 0; c < l->cols; c++) row[c] = (int16_t)(sums[c] >> 4 < MOST_SUM ? sums[c] >> 4 : MOST_SUM);
        }
    }
    if (!sums) free(out), out = 0;
    free(sums);
    return out;
}

/* Values of a component in 1/64 step, nearer to zero by what the model says, which is more for 1
 * than for larger values. Returns whether any is not zero, and for each row of blocks in `alive`. */
FASTEST static int dequantise(const TecModel *m, const int32_t *values, const uint8_t *indexes, int rows,
                              int cols, int means, double *out, uint8_t *alive) {
    const int32_t most = 1 << 20;
    int any = 0;
    for (int r = 0; r < rows; r++, values += cols, indexes += cols, out += cols) {
        int32_t seen = 0;
        for (int c = 0; c < cols; c++) seen |= values[c];
        if (!seen) {
            memset(out, 0, sizeof *out * (size_t)cols);
            continue;
        }
        any = alive[r] = 1;
        for (int c = 0; c < cols; c++) {
            int32_t value = values[c], size = value < 0 ? -value : value;
            int32_t nearer = means ? 0 : m->towards_zero[indexes[c]][size > 1];
            int32_t whole = (size > most ? most : size) * 64 - (size ? nearer : 0);
            out[c] = value < 0 ? -whole : whole;
        }
    }
    return any;
}

/* `count` coefficients of a band: `weight` times the `components` that are not zero, then a factor.
 * The sums are whole numbers of less than 2^43. A product of 2^53 or more may be rounded, but then
 * it is clipped. */
FASTEST static void mix(const double *const *components, const double *weight, int alive,
                        double factor, int64_t from, int64_t to, int32_t *out) {
    const double most = 1 << 27;
    for (int64_t i = from; i < to; i += LANES) {
        Lanes sum = all(0.5);
        for (int k = 0; k < alive; k++) sum += weight[k] * load(components[k] + i);
        sum = nearest(sum * (1.0 / (1 << BASIS_BITS)));
        sum = clip(sum * factor, most * (1 << 14));
        sum = nearest((sum + 0.5) * (1.0 / (1 << 14)));
        if (i + LANES <= to) store_whole(out + i, sum);
        else
            for (int j = 0; i + j < to; j++) out[i + j] = (int32_t)sum[j];
    }
}

int tec_coefficients(const Layout *l, Coefficients *out) {
    int64_t blocks = (int64_t)l->rows * l->cols, places = 0;
    for (int b = 0; b < l->bands; b++) places += FREQUENCIES >> (2 * l->level[b]);
    uint64_t alive_size = (uint64_t)FREQUENCIES * (uint64_t)l->rows;
    alive_size = (alive_size + 7) / 8 * 8;
    uint8_t *block = tec_room((uint64_t)places * (uint64_t)blocks * 4 + alive_size + 64, 1);
    if (!block) return TEC_NO_MEMORY;
    *out = (Coefficients){.alive = block, .block = block};
    memset(out->alive, 0, (size_t)alive_size);
    int32_t *next = (int32_t *)(void *)(block + alive_size);
    for (int b = 0; b < l->bands; b++) {
        out->of[b] = next;
        next += blocks * (FREQUENCIES >> (2 * l->level[b]));
    }
    memset(next, 0, 32); /* vectors read a little beyond the last plane */
    return TEC_OK;
}

int tec_mix_values(const TecModel *m, const Spectrum *s, int64_t step, const int32_t *values,
                   const uint8_t *indexes, Coefficients *out) {
    const Layout *l = &s->layout;
    int64_t blocks = (int64_t)l->rows * l->cols;
    int most = 0;
    for (int class = 0; class < CLASSES; class++)
        if (s->bases[class].components > most) most = s->bases[class].components;
    double *components = tec_zeros((uint64_t)most * (uint64_t)blocks + LANES, sizeof *components);
    int status = components ? tec_coefficients(l, out) : TEC_NO_MEMORY;
    if (status) {
        free(components);
        return status;
    }
    for (int f = 0; f < FREQUENCIES; f++) {
        Frequency at = m->frequencies[f];
        const Basis *basis = &s->bases[at.class];
        uint8_t *alive = out->alive + (at.u * MOST_SIZE + at.v) * l->rows;
        const double *there[MOST_BANDS];
        int which[MOST_BANDS], count = 0;
        for (int k = 0; k < basis->components; k++, values += blocks, indexes += blocks) {
            double *component = components + k * blocks;
            if (!dequantise(m, values, indexes, l->rows, l->cols, f == 0, component, alive)) continue;
            there[count] = component, which[count++] = k;
        }
        for (int i = 0; i < basis->bands && count; i++) {
            int band = l->order[i], size = MOST_SIZE >> l->level[band];
            double weight[MOST_BANDS], factor = tec_factor(m, l, band, at.u, at.v, step);
            for (int k = 0; k < count; k++) weight[k] = basis->vectors[i][which[k]];
            int32_t *plane = out->of[band] + (at.u * size + at.v) * blocks;
            for (int r = 0; r < l->rows; r++) {
                int from = r;
                while (r < l->rows && alive[r]) r++;
                if (r > from)
                    mix(there, weight, count, factor, (int64_t)from * l->cols, (int64_t)r * l->cols, plane);
            }
        }
    }
    free(components);
    return TEC_OK;
}
