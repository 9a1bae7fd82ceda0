/* Lapped transform of planes, and spectral bases by class of frequency.
 *
 * Forward (encoder): doubles, one operation at a time in one order. Inverse (decoder): whole numbers.
 * round(x / 2^n) is floor((x + 2^(n-1)) / 2^n) throughout.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MOST_SIZE 16

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define FASTEST __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FASTEST
#endif

/* out (size*size, rows, cols): coefficients of one plane (rows*size, cols*size). `overlap` and `dct`
 * are (size, size); `gain` (size) multiplies the coefficients of each frequency of an axis. */
FASTEST int tec_forward(const double *plane, int rows, int cols, int size, const double *overlap,
                const double *dct, const double *gain, double *out) {
    int height = rows * size, width = cols * size;
    double *work = malloc(sizeof *work * height * width);
    if (!work) return -1;
    memcpy(work, plane, sizeof *work * height * width);
    int half = size / 2;
    double line[MOST_SIZE];
    for (int r = 0; r < height; r++) /* across vertical boundaries */
        for (int c = 1; c < cols; c++) {
            double *at = work + (size_t)r * width + c * size - half;
            for (int i = 0; i < size; i++) {
                line[i] = 0;
                for (int j = 0; j < size; j++) line[i] += overlap[i * size + j] * at[j];
            }
            memcpy(at, line, sizeof *line * size);
        }
    for (int r = 1; r < rows; r++)
        for (int c = 0; c < width; c++) {
            double *at = work + (size_t)(r * size - half) * width + c;
            for (int i = 0; i < size; i++) {
                line[i] = 0;
                for (int j = 0; j < size; j++) line[i] += overlap[i * size + j] * at[(size_t)j * width];
            }
            for (int i = 0; i < size; i++) at[(size_t)i * width] = line[i];
        }
    double half_way[MOST_SIZE * MOST_SIZE];
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++) {
            const double *at = work + (size_t)r * size * width + c * size;
            for (int i = 0; i < size; i++)
                for (int v = 0; v < size; v++) {
                    double sum = 0;
                    for (int j = 0; j < size; j++) sum += dct[v * size + j] * at[(size_t)i * width + j];
                    half_way[i * size + v] = sum;
                }
            for (int u = 0; u < size; u++)
                for (int v = 0; v < size; v++) {
                    double sum = 0;
                    for (int i = 0; i < size; i++) sum += dct[u * size + i] * half_way[i * size + v];
                    out[((size_t)(u * size + v) * rows + r) * cols + c] = sum * (gain[u] * gain[v]);
                }
        }
    free(work);
    return 0;
}

static int64_t rounded(int64_t x, int bits) { return (x + ((int64_t)1 << (bits - 1))) >> bits; }

static int64_t clipped(int64_t x, int64_t most) { return x > most ? most : x < -most ? -most : x; }

/* Coefficients (size*size, rows, cols) in 1/64 DN to a plane in 1/64 DN. `dct` in 1/2^14: entry
 * [u * size + i] is what frequency u adds to sample i; `overlap` in 1/2^14. */
FASTEST int tec_inverse(const int32_t *coefficients, int rows, int cols, int size, const int32_t *overlap,
                const int32_t *dct, int32_t *plane) {
    int height = rows * size, width = cols * size, half = size / 2;
    int64_t half_way[MOST_SIZE * MOST_SIZE], line[MOST_SIZE];
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++) {
            for (int u = 0; u < size; u++) {
                int64_t sums[MOST_SIZE] = {0};
                for (int v = 0; v < size; v++) {
                    int64_t w = coefficients[((size_t)(u * size + v) * rows + r) * cols + c];
                    if (w)
                        for (int j = 0; j < size; j++) sums[j] += w * dct[v * size + j];
                }
                for (int j = 0; j < size; j++) half_way[u * size + j] = rounded(sums[j], 14);
            }
            for (int i = 0; i < size; i++) {
                int64_t sums[MOST_SIZE] = {0};
                for (int u = 0; u < size; u++)
                    for (int j = 0; j < size; j++) sums[j] += half_way[u * size + j] * dct[u * size + i];
                int32_t *at = plane + (size_t)(r * size + i) * width + c * size;
                for (int j = 0; j < size; j++) at[j] = (int32_t)clipped(rounded(sums[j], 14), 1 << 26);
            }
        }
    for (int r = 1; r < rows; r++)
        for (int c = 0; c < width; c++) {
            int32_t *at = plane + (size_t)(r * size - half) * width + c;
            for (int i = 0; i < size; i++) {
                line[i] = 0;
                for (int j = 0; j < size; j++) line[i] += (int64_t)overlap[i * size + j] * at[(size_t)j * width];
            }
            for (int i = 0; i < size; i++)
                at[(size_t)i * width] = (int32_t)clipped(rounded(line[i], 14), 1 << 26);
        }
    for (int r = 0; r < height; r++)
        for (int c = 1; c < cols; c++) {
            int32_t *at = plane + (size_t)r * width + c * size - half;
            for (int i = 0; i < size; i++) {
                line[i] = 0;
                for (int j = 0; j < size; j++) line[i] += (int64_t)overlap[i * size + j] * at[j];
            }
            for (int i = 0; i < size; i++) at[i] = (int32_t)clipped(rounded(line[i], 14), 1 << 26);
        }
    return 0;
}

/* out (rows, rows): sums of products of `rows` rows of `length` values, four partial sums each. */
FASTEST int tec_products(const double *values, int rows, int64_t length, double *out) {
    for (int a = 0; a < rows; a++)
        for (int b = 0; b <= a; b++) {
            const double *x = values + a * length, *y = values + b * length;
            double sums[4] = {0};
            int64_t i = 0;
            for (; i + 4 <= length; i += 4)
                for (int j = 0; j < 4; j++) sums[j] += x[i + j] * y[i + j];
            for (; i < length; i++) sums[0] += x[i] * y[i];
            out[a * rows + b] = out[b * rows + a] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        }
    return 0;
}

/* out (columns, length): the columns of `basis` (rows, all) times the rows of `values`. */
FASTEST int tec_project(const double *values, int rows, int64_t length, const double *basis,
                        int columns, int all, double *out) {
    for (int k = 0; k < columns; k++) {
        double *to = out + k * length;
        for (int64_t i = 0; i < length; i++) to[i] = 0;
        for (int b = 0; b < rows; b++) {
            double weight = basis[b * all + k];
            const double *from = values + b * length;
            for (int64_t i = 0; i < length; i++) to[i] += weight * from[i];
        }
    }
    return 0;
}

/* Coefficients of bands, in 1/64 DN, from those of components, in 1/64 step.
 *
 * values (frequencies, components, blocks); basis (bands, components) in 1/2^12; factor
 * (frequencies, bands): DN in a step, in 1/2^14; out (frequencies, bands, blocks). */
FASTEST int tec_mix(const int32_t *values, int frequencies, int components, int bands, int blocks,
                    const int32_t *basis, const int64_t *factor, int32_t *out) {
    for (int f = 0; f < frequencies; f++)
        for (int b = 0; b < bands; b++)
            for (int i = 0; i < blocks; i++) {
                int64_t sum = 0;
                for (int k = 0; k < components; k++)
                    sum += (int64_t)basis[b * components + k] * values[((int64_t)f * components + k) * blocks + i];
                sum = clipped(rounded(sum, 12), (int64_t)1 << 30);
                out[((int64_t)f * bands + b) * blocks + i] =
                    (int32_t)clipped(rounded(sum * factor[f * bands + b], 14), 1 << 27);
            }
    return 0;
}

/* out (size, size): the identity after rotations, the last one first; rotation i turns rows first[i]
 * and second[i] by angles[i]. Entries are rounded to 1/2^24: what libraries' sines differ by is gone. */
int tec_rotated(int size, int count, const int32_t *first, const int32_t *second,
                const double *angles, double *out) {
    for (int i = 0; i < size * size; i++) out[i] = i % (size + 1) ? 0 : 1;
    for (int i = count - 1; i >= 0; i--) {
        double c = cos(angles[i]), s = sin(angles[i]);
        double *a = out + first[i] * size, *b = out + second[i] * size;
        for (int j = 0; j < size; j++) {
            double upper = a[j], lower = b[j];
            a[j] = c * upper - s * lower;
            b[j] = c * lower + s * upper;
        }
    }
    for (int i = 0; i < size * size; i++) out[i] = rint(out[i] * 16777216.0) / 16777216.0;
    return 0;
}
