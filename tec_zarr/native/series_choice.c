/* What an encoder of series chooses by: samples of coefficients, estimated sizes, weights, the order
 * of coding. Doubles, one operation at a time in one order, so that all machines choose the same. */
#include <stdlib.h>
#include <string.h>

#include "fastest.h"
#include "lanes.h"
#include "series.h"

#define FINER_SLOPE 0.7 /* qualities finer for each doubling of the bits that depend on a date */
#define FINER_START 0.4 /* after so many doublings */
#define MOST_FINER 15   /* in 1/8 quality */
#define RIDGE 0.01      /* of the mean energy of the references, added to each */

/* How many blocks of a tile are sampled, by class: the finer ones have more frequencies. */
static const int SAMPLED[CLASSES] = {256, 256, 256, 128, 32};

/* ---- samples */

int tec_sample(const TecModel *m, const Layout *l, const Wanted *wanted, const Coefficients *decoded, Sample *s) {
    int blocks = l->rows * l->cols;
    uint64_t total = 0;
    int stride[CLASSES], taken[CLASSES];
    for (int class = 0; class < CLASSES; class++) {
        stride[class] = blocks > SAMPLED[class] ? blocks / SAMPLED[class] : 1;
        taken[class] = (blocks + stride[class] - 1) / stride[class];
        s->bands[class] = tec_bands_of(l, class);
        s->count[class] = taken[class] * (m->first[class + 1] - m->first[class]);
        s->share[class] = (double)blocks / taken[class];
        total += (uint64_t)s->count[class] * (uint64_t)s->bands[class];
    }
    double *next = s->block = tec_room(total, sizeof *next);
    if (!next) return TEC_NO_MEMORY;
    for (int class = 0; class < CLASSES; class++) {
        s->rows[class] = s->bands[class] ? next : 0;
        for (int i = 0; i < s->bands[class]; i++) {
            int band = l->order[i], size = MOST_SIZE >> l->level[band];
            for (int f = m->first[class]; f < m->first[class + 1]; f++) {
                Frequency at = m->frequencies[f];
                int64_t plane = (at.u * size + at.v) * (int64_t)blocks;
                double unit = tec_gain(m, l, band, at.u, at.v) / 4294967296.0 / 64;
                const uint8_t *alive = decoded ? decoded->alive + (at.u * MOST_SIZE + at.v) * l->rows : 0;
                for (int p = 0; p < blocks; p += stride[class])
                    *next++ = wanted ? wanted->of[band][plane + p]
                                     : alive[p / l->cols] ? unit * decoded->of[band][plane + p] : 0;
            }
        }
    }
    return TEC_OK;
}

void tec_sample_end(Sample *s) {
    free(s->block);
    s->block = 0;
}

FASTEST static double product(const double *x, const double *y, int count) {
    Lanes sums = all(0), more = all(0);
    int i = 0;
    for (; i + 2 * LANES <= count; i += 2 * LANES) {
        sums += load(x + i) * load(y + i);
        more += load(x + i + LANES) * load(y + i + LANES);
    }
    sums += more;
    double sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    for (; i < count; i++) sum += x[i] * y[i];
    return sum;
}

void tec_gram(const Sample *one, const Sample *other, Gram *gram) {
    for (int class = 0; class < CLASSES; class++) {
        int count = one->count[class];
        for (int a = 0; a < one->bands[class]; a++)
            for (int b = one == other ? a : 0; b < other->bands[class]; b++) {
                gram->of[class][a][b] = product(one->rows[class] + (int64_t)a * count,
                                                other->rows[class] + (int64_t)b * count, count);
                if (one == other) gram->of[class][b][a] = gram->of[class][a][b];
            }
    }
}

/* ---- sizes */

/* log2 of a positive number: of 1 .. 2 by the series of the inverse hyperbolic tangent. */
static double log2_of(double x) {
    int whole = 0;
    for (; x >= 2; x /= 2) whole++;
    for (; x < 1; x *= 2) whole--;
    double t = (x - 1) / (x + 1), z = t * t, sum = 0;
    for (int i = 21; i > 0; i -= 2) sum = 1.0 / i + z * sum;
    return whole + 2 * t * sum / 0.6931471805599453;
}

/* A class has one Gaussian distribution, with the covariance of the bands there. */
static double bits_of_class(const Sample *s, int class, const Gram *gram, double step) {
    double lower[MOST_BANDS][MOST_BANDS], logs = 0; /* Cholesky's factor of 1 + covariance / distortion */
    double distortion = step * step / 6;
    for (int a = 0; a < s->bands[class]; a++)
        for (int b = 0; b <= a; b++) {
            double sum = gram->of[class][a][b] / (s->count[class] * distortion) + (a == b);
            for (int k = 0; k < b; k++) sum -= lower[a][k] * lower[b][k];
            if (a != b) lower[a][b] = sum / lower[b][b];
            else {
                if (sum < 1) sum = 1; /* it cannot be less but for rounding */
                lower[a][a] = __builtin_sqrt(sum);
                logs += log2_of(sum) / 2;
            }
        }
    return logs * s->count[class] * s->share[class];
}

double tec_bits_of(const Sample *s, const Gram *gram, double step) {
    double bits = 0;
    for (int class = 0; class < CLASSES; class++) bits += bits_of_class(s, class, gram, step);
    return bits;
}

/* ---- weights */

/* Solve a symmetric system of `count` equations, whose matrix is lost. */
static void solve(double matrix[MOST_REFERENCES][MOST_REFERENCES], double *right, int count) {
    for (int k = 0; k < count; k++)
        for (int i = k + 1; i < count; i++) {
            double factor = matrix[i][k] / matrix[k][k];
            for (int j = k; j < count; j++) matrix[i][j] -= factor * matrix[k][j];
            right[i] -= factor * right[k];
        }
    for (int k = count - 1; k >= 0; k--) {
        for (int j = k + 1; j < count; j++) right[k] -= matrix[k][j] * right[j];
        right[k] /= matrix[k][k];
    }
}

/* Sums of products, as tec_fit_weights takes them. */
typedef struct {
    const Gram *own, *const *cross, *const (*between)[MOST_REFERENCES];
    int count;
} Products;

/* The weights of a band, or of all bands together, in 1/16. Bands count in proportion to what an error
 * of theirs costs: with less energy, more. */
static void fit_bands(const Products *p, int class, int from, int to, double noise, int8_t *found) {
    double matrix[MOST_REFERENCES][MOST_REFERENCES] = {{0}}, right[MOST_REFERENCES] = {0}, energy = 0;
    for (int i = from; i < to; i++) {
        double part = 1 / (p->own->of[class][i][i] + noise);
        for (int k = 0; k < p->count; k++) {
            right[k] += part * p->cross[k]->of[class][i][i];
            for (int j = 0; j < p->count; j++) matrix[k][j] += part * p->between[k][j]->of[class][i][i];
        }
    }
    for (int k = 0; k < p->count; k++) energy += matrix[k][k];
    for (int k = 0; k < p->count; k++) matrix[k][k] += RIDGE * energy / p->count + 1e-9;
    solve(matrix, right, p->count);
    for (int k = 0; k < p->count; k++) {
        double x = right[k] * (1 << WEIGHT_BITS);
        x = x > MOST_WEIGHT ? MOST_WEIGHT : x < -MOST_WEIGHT ? -MOST_WEIGHT : x;
        found[k] = (int8_t)(x < 0 ? x - 0.5 : x + 0.5);
    }
}

/* What the weights of a class leave over. */
static void take_left(const Products *p, int class, int bands, const References *references, Gram *left) {
    const double unit = 1.0 / (1 << WEIGHT_BITS);
    for (int a = 0; a < bands; a++)
        for (int b = 0; b < bands; b++) {
            double sum = p->own->of[class][a][b];
            for (int k = 0; k < p->count; k++) {
                double of_a = unit * references->weight[k][class][a], of_b = unit * references->weight[k][class][b];
                sum -= of_b * p->cross[k]->of[class][a][b] + of_a * p->cross[k]->of[class][b][a];
                for (int j = 0; j < p->count; j++)
                    sum += of_a * unit * references->weight[j][class][b] *
                           (k <= j ? p->between[k][j]->of[class][a][b] : p->between[k][j]->of[class][b][a]);
            }
            left->of[class][a][b] = sum;
        }
}

void tec_fit_weights(const Sample *s, const Gram *own, const Gram *const *cross,
                     const Gram *const (*between)[MOST_REFERENCES], int count, double step,
                     References *references, Gram *left) {
    const Products p = {own, cross, between, count};
    references->count = count;
    for (int class = 0; class < CLASSES; class++) {
        int bands = s->bands[class];
        double noise = s->count[class] * step * step / 6 + 1e-9, fewest = 0;
        References best = *references;
        for (int shared = 0; shared < 2 && bands; shared++) {
            uint8_t room[1024];
            BitWriter header = {room, 8 * sizeof room, 0, 0};
            references->shared[class] = (uint8_t)shared;
            int8_t found[MOST_REFERENCES] = {0};
            for (int i = 0; i < bands; i++) {
                if (!shared || !i) fit_bands(&p, class, i, shared ? bands : i + 1, noise, found);
                for (int k = 0; k < count; k++) references->weight[k][class][i] = found[k];
            }
            take_left(&p, class, bands, references, left);
            tec_write_weights(&header, class, bands, references);
            double size = (double)header.at + bits_of_class(s, class, left, step);
            if (!shared || size < fewest) best = *references, fewest = size;
        }
        *references = best;
        if (!best.shared[class]) take_left(&p, class, bands, references, left);
    }
}

/* ---- the order of coding */

/* The next date is the one that the dates before it explain best. If they explain none, it is the one
 * that helps the remaining dates most, and it is coded without references. A date passes its errors on
 * to the dates that are predicted from it, and detail that is coded once need not be coded again. So
 * each date credits its best reference with the share of bits that the reference saves: of its own, and
 * of those that depend on it. The method is that of the macroblock tree of video encoders. */
int tec_order(int dates, const double *alone, const double *given, int32_t *order, int32_t *finer) {
    double *now = tec_room((uint64_t)dates, sizeof *now), *depending = tec_zeros((uint64_t)dates, sizeof *now);
    uint8_t *done = tec_zeros((uint64_t)dates, 1);
    int status = now && depending && done ? TEC_OK : TEC_NO_MEMORY;
    for (int d = 0; d < dates && !status; d++) now[d] = alone[d];
    for (int place = 0; place < dates && !status; place++) {
        int best = -1;
        double most = 0;
        for (int d = 0; d < dates; d++)
            if (!done[d] && alone[d] - now[d] > most) best = d, most = alone[d] - now[d];
        if (best < 0)
            for (int d = 0; d < dates; d++) {
                double saved = 0;
                for (int o = 0; o < dates; o++)
                    if (!done[d] && !done[o] && o != d && now[o] > given[(int64_t)o * dates + d])
                        saved += now[o] - given[(int64_t)o * dates + d];
                if (!done[d] && (best < 0 || saved > most)) best = d, most = saved;
            }
        order[place] = best, done[best] = 1;
        for (int d = 0; d < dates; d++)
            if (given[(int64_t)d * dates + best] < now[d]) now[d] = given[(int64_t)d * dates + best];
    }
    for (int place = dates - 1; place > 0 && !status; place--) {
        int date = order[place], best = order[0];
        for (int i = 1; i < place; i++)
            if (given[(int64_t)date * dates + order[i]] < given[(int64_t)date * dates + best]) best = order[i];
        double saved = alone[date] - given[(int64_t)date * dates + best];
        if (saved > 0) depending[best] += saved / alone[date] * (alone[date] + depending[date]);
    }
    for (int d = 0; d < dates && !status; d++) {
        double doublings = log2_of(1 + depending[d] / (alone[d] > 1 ? alone[d] : 1)) - FINER_START;
        double eighths = doublings > 0 ? 8 * FINER_SLOPE * doublings : 0;
        finer[d] = eighths < MOST_FINER ? (int)(eighths + 0.5) : MOST_FINER;
    }
    free(now), free(depending), free(done);
    return status;
}
