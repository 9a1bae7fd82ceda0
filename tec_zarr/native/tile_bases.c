/* Covariances of coefficients, spectral bases, and projections on them. Encoders only: doubles, one
 * operation at a time in one order, so that all machines write the same. */
#include <stdlib.h>
#include <string.h>

#include "fastest.h"
#include "lanes.h"
#include "tile.h"

#define SWEEPS 30

typedef double Matrix[MOST_BANDS][MOST_BANDS];

static double size_of(double x) { return x < 0 ? -x : x; }

static double root(double x) { return __builtin_sqrt(x); }

/* ---- covariance */

/* Sums of products of each pair of rows, of `count` values each, are added to out. */
FASTEST static void add_products(const double *const *rows, int bands, int64_t count, Matrix out) {
    for (int a = 0; a < bands; a++)
        for (int b = 0; b <= a; b++) {
            const double *x = rows[a], *y = rows[b];
            Lanes sums = all(0);
            int64_t i = 0;
            for (; i + LANES <= count; i += LANES) sums += load(x + i) * load(y + i);
            double sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
            for (; i < count; i++) sum += x[i] * y[i];
            out[a][b] += sum;
        }
}

void tec_covariance(const TecModel *m, const Layout *l, double *const *coefficients, int class,
                    double out[MOST_BANDS][MOST_BANDS]) {
    int bands = tec_bands_of(l, class);
    int64_t blocks = (int64_t)l->rows * l->cols;
    int frequencies = m->first[class + 1] - m->first[class];
    memset(out, 0, sizeof(Matrix));
    for (int f = m->first[class]; f < m->first[class + 1]; f++) {
        const double *rows[MOST_BANDS];
        for (int i = 0; i < bands; i++) {
            int band = l->order[i], size = MOST_SIZE >> l->level[band];
            rows[i] = coefficients[band] + (m->frequencies[f].u * size + m->frequencies[f].v) * blocks;
        }
        add_products(rows, bands, blocks, out);
    }
    for (int a = 0; a < bands; a++)
        for (int b = 0; b <= a; b++) {
            out[a][b] /= (double)(frequencies * blocks);
            out[b][a] = out[a][b];
        }
}

/* ---- eigenvectors */

/* Turn rows and columns p and q of a symmetric matrix so that entry (p, q) is 0. */
static void turn_away(Matrix a, Matrix vectors, int n, int p, int q) {
    double theta = (a[q][q] - a[p][p]) / (2 * a[p][q]);
    double t = 1 / (size_of(theta) + root(theta * theta + 1));
    if (theta < 0) t = -t;
    double c = 1 / root(t * t + 1), s = t * c;
    for (int k = 0; k < n; k++) {
        double x = a[k][p], y = a[k][q];
        a[k][p] = c * x - s * y, a[k][q] = s * x + c * y;
    }
    for (int k = 0; k < n; k++) {
        double x = a[p][k], y = a[q][k];
        a[p][k] = c * x - s * y, a[q][k] = s * x + c * y;
        x = vectors[k][p], y = vectors[k][q];
        vectors[k][p] = c * x - s * y, vectors[k][q] = s * x + c * y;
    }
    a[p][q] = a[q][p] = 0;
}

/* Eigenvalues of a symmetric matrix, the largest first, and their vectors in columns, by Jacobi's
 * method. The largest part of a vector is positive. */
static void find_vectors(Matrix a, int n, double *values, Matrix vectors) {
    Matrix found;
    double whole = 0;
    memset(found, 0, sizeof found);
    for (int i = 0; i < n; i++) {
        found[i][i] = 1;
        for (int j = 0; j < n; j++) whole += a[i][j] * a[i][j];
    }
    for (int sweep = 0; sweep < SWEEPS; sweep++) {
        double rest = 0;
        for (int p = 0; p < n; p++)
            for (int q = p + 1; q < n; q++) rest += a[p][q] * a[p][q];
        if (!(rest > 1e-22 * whole)) break;
        for (int p = 0; p < n; p++)
            for (int q = p + 1; q < n; q++)
                if (a[p][q] * a[p][q] > 1e-26 * whole) turn_away(a, found, n, p, q);
    }
    int done[MOST_BANDS] = {0};
    for (int k = 0; k < n; k++) {
        int best = -1, largest = 0;
        for (int i = 0; i < n; i++)
            if (!done[i] && (best < 0 || a[i][i] > a[best][best])) best = i;
        done[best] = 1;
        values[k] = a[best][best];
        for (int i = 0; i < n; i++)
            if (size_of(found[i][best]) > size_of(found[largest][best]) + 1e-9) largest = i;
        for (int i = 0; i < n; i++) vectors[i][k] = found[largest][best] < 0 ? -found[i][best] : found[i][best];
    }
}

/* ---- angles */

/* arctan of 0 .. 1: halved twice, then its series. */
static double arctan(double x) {
    for (int i = 0; i < 2; i++) x /= 1 + root(1 + x * x);
    double z = x * x, sum = 0;
    for (int i = 21; i > 0; i -= 2) sum = 1.0 / i - z * sum;
    return 4 * x * sum;
}

/* The angle of a point with x >= 0, in units of which `half` are pi, rounded. */
static int32_t angle_of(double y, double x, int32_t half) {
    const double pi = 3.14159265358979323846;
    double up = size_of(y), angle = up <= x ? (x > 0 ? arctan(up / x) : 0) : pi / 2 - arctan(x / up);
    int32_t whole = (int32_t)(angle / pi * half + 0.5);
    return y < 0 ? -whole : whole;
}

/* 2 log2(x), rounded. */
int tec_spread(double x) {
    int octaves = 0;
    if (!(x > 1e-12)) return -64;
    for (; x >= 2; x /= 2) octaves++;
    for (; x < 1; x *= 2) octaves--;
    return 2 * octaves + (x >= 1.189207115002721) + (x >= 1.681792830507429);
}

/* ---- writing */

int tec_write_basis(BitWriter *bits, double covariance[MOST_BANDS][MOST_BANDS], int bands, double step,
                    int class, int angle_base, const Basis *before, Basis *basis) {
    Matrix vectors, work;
    double values[MOST_BANDS];
    int32_t angles[MOST_BANDS * (MOST_BANDS - 1) / 2];
    int at = 0, follows = before->bands == bands, expected = tec_first_spread(class);
    find_vectors(covariance, bands, values, vectors);
    basis->bands = bands, basis->components = 0;
    for (int k = 0; k < bands; k++) {
        int spread = tec_spread((values[k] > 1e-9 ? values[k] : 1e-9) / (step * step));
        if (spread > SPREAD_HIGH) spread = SPREAD_HIGH;
        if (spread <= tec_silent(class)) break;
        basis->spreads[basis->components++] = spread;
    }
    tec_put(bits, (uint32_t)basis->components, 5);
    for (int k = 0; k < basis->components; k++) {
        tec_put_signed(bits, expected - basis->spreads[k], 2);
        expected = basis->spreads[k];
    }
    for (int i = 0; i < bands; i++) /* work = the vectors, seen from those of the class before */
        for (int j = 0; j < bands; j++) {
            double sum = follows ? 0 : vectors[i][j];
            for (int k = 0; k < bands && follows; k++) sum += before->full[k][i] * vectors[k][j];
            work[i][j] = follows ? sum / (1 << FULL_BITS) : sum;
        }
    for (int j = 0; j < basis->components && j < bands - 1; j++) {
        int size = tec_angle_bits(basis->spreads[j], angle_base);
        for (int i = j + 1; i < bands; i++) {
            if (i == j + 1 && work[j][j] < 0) /* so that no angle is larger than a quarter turn */
                for (int k = 0; k < bands; k++) work[k][j] = -work[k][j];
            /* later pivots are not negative either, but for rounding */
            int32_t half = 1 << size, most = half / 2 - 1;
            int32_t code = angle_of(work[i][j], work[j][j] > 0 ? work[j][j] : 0, half);
            if (code > most) code = most;
            if (follows) tec_put_signed(bits, code, tec_angle_rice(basis, class, i, size, angle_base));
            else tec_put(bits, (uint32_t)(code + half / 2), size);
            angles[at] = code * (1 << (15 - size));
            int64_t sine, cosine;
            tec_sine(angles[at++], &sine, &cosine);
            double s = (double)sine / (1 << 30), c = (double)cosine / (1 << 30);
            for (int k = 0; k < bands; k++) {
                double pivot = work[j][k], other = work[i][k];
                work[j][k] = c * pivot + s * other;
                work[i][k] = c * other - s * pivot;
            }
        }
    }
    tec_make_vectors(angles, before, basis);
    return bits->full ? TEC_TOO_SMALL : TEC_OK;
}

/* ---- projection */

/* out = the sum of rows times their weights. */
FASTEST static void project(const double *const *rows, const double *weight, int bands, int64_t count, double *out) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        Lanes sum = all(0);
        for (int b = 0; b < bands; b++) sum += weight[b] * load(rows[b] + i);
        store(out + i, sum);
    }
    for (; i < count; i++) {
        out[i] = 0;
        for (int b = 0; b < bands; b++) out[i] += weight[b] * rows[b][i];
    }
}

double *tec_components(const TecModel *m, const Layout *l, double *const *coefficients, int class,
                       const Basis *basis, double step, double *out) {
    int64_t blocks = (int64_t)l->rows * l->cols;
    for (int f = m->first[class]; f < m->first[class + 1]; f++) {
        const double *rows[MOST_BANDS];
        for (int i = 0; i < basis->bands; i++) {
            int band = l->order[i], size = MOST_SIZE >> l->level[band];
            rows[i] = coefficients[band] + (m->frequencies[f].u * size + m->frequencies[f].v) * blocks;
        }
        for (int k = 0; k < basis->components; k++, out += blocks) {
            double weight[MOST_BANDS];
            for (int i = 0; i < basis->bands; i++) weight[i] = basis->vectors[i][k] / (step * (1 << BASIS_BITS));
            project(rows, weight, basis->bands, blocks, out);
        }
    }
    return out;
}
