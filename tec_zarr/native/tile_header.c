/* The header of a section: layout, means, bases. Reading is in whole numbers. */
#include <string.h>

#include "tile.h"

#define ONE ((int64_t)1 << 30)

static int64_t rounded(int64_t x, int bits) { return (x + ((int64_t)1 << (bits - 1))) >> bits; }

/* ---- step and angles */

int64_t tec_step(int quality) {
    /* 2^44 log2(4200 / 50) / 7 / 4096: octaves that a unit of quality takes off the step */
    const int64_t octaves = 3922113468, ln2 = 744261118; /* ln 2 in 1/2^30 */
    int64_t power = (quality - FIRST_QUALITY) * octaves;
    int whole = (int)(power >> 44);
    int64_t x = ((power & (((int64_t)1 << 44) - 1)) >> 14) * ln2 >> 30;
    int64_t e = ONE; /* of e^-x: the series 1 - x (1 - x/2 (1 - x/3 ...)) */
    for (int i = 12; i > 0; i--) e = ONE - (x * e >> 30) / i;
    return rounded(256 * 4200 * e, 30 + whole);
}

void tec_sine(int32_t angle, int64_t *sine, int64_t *cosine) {
    const int64_t pi = 107944301636; /* in 1/2^35 */
    int32_t quarter = (angle + (1 << 13)) >> 14;
    int64_t x = (angle - quarter * (1 << 14)) * pi >> 20, z = x * x >> 30; /* in 1/2^30 */
    int64_t s = ONE, c = ONE;
    for (int i = 10; i > 0; i -= 2) {
        s = ONE - (z * s >> 30) / (i * (i + 1));
        c = ONE - (z * c >> 30) / (i * (i - 1));
    }
    s = x * s >> 30;
    switch (quarter & 3) {
    case 0: *sine = s, *cosine = c; break;
    case 1: *sine = c, *cosine = -s; break;
    case 2: *sine = -s, *cosine = -c; break;
    default: *sine = -c, *cosine = s; break;
    }
}

/* ---- bits */

uint32_t tec_get(BitReader *b, int count) {
    uint32_t value = 0;
    if (count > b->length - b->at) {
        b->short_of = 1;
        return 0;
    }
    for (; count > 0; count--, b->at++)
        value = value << 1 | (b->bytes[b->at >> 3] >> (7 - (b->at & 7)) & 1);
    return value;
}

int64_t tec_get_signed(BitReader *b, int rice) {
    int high = 0;
    while (high < 24 && tec_get(b, 1)) high++;
    int64_t mapped = high == 24 ? (int64_t)tec_get(b, 32) : (int64_t)high << rice | tec_get(b, rice);
    return mapped % 2 ? -((mapped + 1) >> 1) : mapped >> 1;
}

void tec_put(BitWriter *b, uint32_t value, int count) {
    if (count > b->length - b->at) {
        b->full = 1;
        return;
    }
    for (int i = count - 1; i >= 0; i--, b->at++) {
        if (!(b->at & 7)) b->bytes[b->at >> 3] = 0;
        b->bytes[b->at >> 3] |= (uint8_t)((value >> i & 1) << (7 - (b->at & 7)));
    }
}

void tec_put_signed(BitWriter *b, int64_t value, int rice) {
    uint64_t mapped = value >= 0 ? 2 * (uint64_t)value : 2 * (uint64_t)-value - 1;
    if (mapped >> rice >= 24) {
        tec_put(b, (1u << 24) - 1, 24);
        tec_put(b, (uint32_t)mapped, 32);
        return;
    }
    int high = (int)(mapped >> rice);
    tec_put(b, ((1u << high) - 1) << 1, high + 1);
    tec_put(b, (uint32_t)mapped & ((1u << rice) - 1), rice);
}

/* ---- layout */

static int is_even(const TecGrid *g) { return g->factor && g->factor % 2 == 0; }

/* Where the cells of level 1 begin: there most grids of even factor begin. */
static void find_margin(Layout *l) {
    int count[4] = {0}, best = 0;
    for (int b = 0; b < l->bands; b++)
        if (is_even(&l->grids[b])) count[l->grids[b].row % 2 * 2 + l->grids[b].column % 2]++;
    for (int i = 1; i < 4; i++)
        if (count[i] > count[best]) best = i;
    l->margin[0] = best / 2, l->margin[1] = best % 2;
}

/* Number the grids in the order of bands, from 1; 0 is none. Returns how many there are. */
static int number_grids(const Layout *l, TecGrid *kinds, int *number) {
    int count = 0;
    for (int b = 0; b < l->bands; b++) {
        const TecGrid *g = &l->grids[b];
        int i = 0;
        while (i < count && (kinds[i].kind != g->kind || kinds[i].factor != g->factor ||
                             kinds[i].row != g->row || kinds[i].column != g->column))
            i++;
        number[b] = g->factor ? i + 1 : 0;
        if (number[b] > count) kinds[count++] = *g;
    }
    return count;
}

int tec_layout(int bands, int height, int width, const TecGrid *grids, Layout *l) {
    l->bands = bands, l->height = height, l->width = width;
    for (int b = 0; b < bands; b++) {
        l->grids[b] = grids[b];
        if (grids[b].factor && !tec_is_grid(&grids[b])) return TEC_BAD_ARGUMENT;
    }
    TecGrid kinds[MOST_BANDS];
    int number[MOST_BANDS];
    if (number_grids(l, kinds, number) > MOST_GRIDS) return TEC_BAD_ARGUMENT;
    find_margin(l);
    int coarse[MOST_BANDS], coarse_count = 0;
    l->fine = 0;
    for (int b = 0; b < bands; b++) {
        const TecGrid *g = &l->grids[b];
        l->level[b] = is_even(g) && g->row % 2 == l->margin[0] && g->column % 2 == l->margin[1];
        if (l->level[b]) coarse[coarse_count++] = b;
        else l->order[l->fine++] = b;
        int factor = g->factor ? g->factor >> l->level[b] : 1;
        l->cells[b] = (TecGrid){REPEATED, factor, g->row, g->column};
        if (l->level[b]) {
            l->cells[b].row = ((g->row + l->margin[0]) >> 1) % factor;
            l->cells[b].column = ((g->column + l->margin[1]) >> 1) % factor;
        }
    }
    memcpy(l->order + l->fine, coarse, sizeof *coarse * (size_t)coarse_count);
    l->plane_height[0] = height + l->margin[0], l->plane_width[0] = width + l->margin[1];
    l->plane_height[1] = (l->plane_height[0] + 1) / 2, l->plane_width[1] = (l->plane_width[0] + 1) / 2;
    l->rows = (l->plane_height[0] + MOST_SIZE - 1) / MOST_SIZE;
    l->cols = (l->plane_width[0] + MOST_SIZE - 1) / MOST_SIZE;
    return TEC_OK;
}

int tec_bands_of(const Layout *l, int class) { return class < CLASSES - 1 ? l->bands : l->fine; }

static int digits_of(int number) {
    int digits = 0;
    while (number >> digits) digits++;
    return digits;
}

static int read_layout(BitReader *bits, int bands, int height, int width, Layout *l) {
    TecGrid kinds[MOST_GRIDS + 1] = {{0, 0, 0, 0}}, grids[MOST_BANDS];
    int count = (int)tec_get(bits, 3);
    if (count > MOST_GRIDS) return TEC_DAMAGED;
    for (int i = 1; i <= count; i++) {
        kinds[i].kind = (int32_t)tec_get(bits, 1);
        kinds[i].factor = (int32_t)tec_get(bits, 3) + 1;
        kinds[i].row = (int32_t)tec_get(bits, 3);
        kinds[i].column = (int32_t)tec_get(bits, 3);
        if (!tec_is_grid(&kinds[i])) return TEC_DAMAGED;
    }
    for (int b = 0; b < bands; b++) {
        int number = (int)tec_get(bits, digits_of(count));
        if (number > count) return TEC_DAMAGED;
        grids[b] = kinds[number];
    }
    return tec_layout(bands, height, width, grids, l);
}

void tec_write_layout(BitWriter *bits, const Layout *l) {
    TecGrid kinds[MOST_BANDS];
    int number[MOST_BANDS], count = number_grids(l, kinds, number);
    tec_put(bits, (uint32_t)count, 3);
    for (int i = 0; i < count; i++) {
        tec_put(bits, (uint32_t)kinds[i].kind, 1);
        tec_put(bits, (uint32_t)kinds[i].factor - 1, 3);
        tec_put(bits, (uint32_t)kinds[i].row, 3);
        tec_put(bits, (uint32_t)kinds[i].column, 3);
    }
    for (int b = 0; b < l->bands; b++) tec_put(bits, (uint32_t)number[b], digits_of(count));
}

/* ---- means */

int tec_mean_digits(int64_t step) {
    int digits = 0;
    while (step >> (digits + 14)) digits++;
    return digits;
}

static int read_means(BitReader *bits, int bands, int64_t step, int32_t *means) {
    int digits = tec_mean_digits(step);
    int64_t mean = 0;
    for (int b = 0; b < bands; b++) {
        mean += tec_get_signed(bits, digits < 8 ? 8 - digits : 0);
        if (mean > MOST_MEAN >> digits || mean < -(MOST_MEAN >> digits)) return TEC_DAMAGED;
        means[b] = (int32_t)(mean * ((int64_t)1 << digits));
    }
    return TEC_OK;
}

void tec_write_means(BitWriter *bits, int bands, int64_t step, const double *wanted, int32_t *means) {
    int digits = tec_mean_digits(step);
    int32_t unit = 1 << digits, before = 0;
    for (int b = 0; b < bands; b++) {
        double x = wanted[b] / unit;
        int32_t whole = (int32_t)(x < 0 ? x - 0.5 : x + 0.5);
        tec_put_signed(bits, whole - before, digits < 8 ? 8 - digits : 0);
        before = whole;
        means[b] = whole * unit;
    }
}

/* ---- bases */

int tec_silent(int class) { return class ? -12 : -16; }
int tec_first_spread(int class) { return class ? 20 : SPREAD_HIGH; }

int tec_angle_base(const Layout *l, int class) {
    static const int of_class[CLASSES] = {5, 6, 7, 7, 8};
    return of_class[class] + ((digits_of(l->rows * l->cols) - 9) >> 1);
}

int tec_angle_bits(int spread, int base) {
    int bits = ((spread + 3) >> 2) + base;
    return bits < 3 ? 3 : bits > 15 ? 15 : bits;
}

int tec_angle_rice(const Basis *basis, int class, int i, int size, int base) {
    int known = i < basis->components ? basis->spreads[i] : basis->spreads[basis->components - 1] - 4;
    int bits = ((known + 3) >> 2) + base - (class ? 3 : 2), most = size - (class ? 5 : 4);
    if (bits > most) bits = most;
    return bits < 0 ? 0 : bits;
}

/* Turn rows j and i of a matrix in 1/2^30 by an angle. */
static void turn(int64_t matrix[MOST_BANDS][MOST_BANDS], int bands, int j, int i, int32_t angle) {
    int64_t s, c;
    tec_sine(angle, &s, &c);
    for (int k = 0; k < bands; k++) {
        int64_t upper = matrix[j][k], lower = matrix[i][k];
        matrix[j][k] = rounded(c * upper - s * lower, 30);
        matrix[i][k] = rounded(c * lower + s * upper, 30);
    }
}

/* The vectors of a basis from its angles, in the order in which they are coded, in pi / 2^15. */
void tec_make_vectors(const int32_t *angles, const Basis *before, Basis *basis) {
    int64_t turned[MOST_BANDS][MOST_BANDS];
    int n = basis->bands, last = basis->components < n - 1 ? basis->components : n - 1, at = 0;
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) turned[i][j] = i == j ? ONE : 0;
    for (int j = 0; j < last; j++) at += n - 1 - j;
    for (int j = last - 1; j >= 0; j--)
        for (int i = n - 1; i > j; i--) turn(turned, n, j, i, angles[--at]);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) turned[i][j] = rounded(turned[i][j], 30 - FULL_BITS);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) {
            int64_t sum = turned[i][j];
            if (before->bands == n) {
                sum = 0;
                for (int k = 0; k < n; k++) sum += before->full[i][k] * turned[k][j];
                sum = rounded(sum, FULL_BITS);
            }
            basis->full[i][j] = (int32_t)sum;
            basis->vectors[i][j] = (int32_t)rounded(sum, FULL_BITS - BASIS_BITS);
        }
}

int tec_read_basis(BitReader *bits, int bands, int class, int angle_base, const Basis *before, Basis *basis) {
    int32_t angles[MOST_BANDS * (MOST_BANDS - 1) / 2];
    int at = 0, follows = before->bands == bands;
    int64_t spread = tec_first_spread(class);
    basis->bands = bands;
    basis->components = (int)tec_get(bits, 5);
    if (basis->components > bands) return TEC_DAMAGED;
    for (int k = 0; k < basis->components; k++) {
        spread -= tec_get_signed(bits, 2);
        if (spread <= tec_silent(class) || spread > SPREAD_HIGH) return TEC_DAMAGED;
        basis->spreads[k] = (int32_t)spread;
    }
    for (int j = 0; j < basis->components && j < bands - 1; j++) {
        int size = tec_angle_bits(basis->spreads[j], angle_base);
        for (int i = j + 1; i < bands; i++) {
            int64_t number, most = (int64_t)1 << size;
            if (follows) number = tec_get_signed(bits, tec_angle_rice(basis, class, i, size, angle_base));
            else number = (int64_t)tec_get(bits, size) - most / 2;
            number = number > most ? most : number < -most ? -most : number;
            angles[at++] = (int32_t)(number * ((int64_t)1 << (15 - size)));
        }
        if (bits->short_of) return TEC_DAMAGED;
    }
    tec_make_vectors(angles, before, basis);
    return TEC_OK;
}

const uint8_t tec_bands_of_usual[USUAL_BASES] = {13, 12, 11, 11, 10, 9, 9, 6, 6};

int tec_usual_bases(int bands) {
    int count = 0;
    for (int i = 0; i < USUAL_BASES; i++) count += tec_bands_of_usual[i] == bands;
    return count;
}

void tec_usual_basis(const TecModel *m, const Layout *l, int number, Basis *basis) {
    int at = -1;
    basis->bands = number ? l->bands : 0;
    for (int i = 0; i < number; i++)
        do at++;
        while (tec_bands_of_usual[at] != l->bands);
    for (int i = 0; i < basis->bands; i++)
        for (int k = 0; k < basis->bands; k++) basis->full[i][k] = m->usual[at][l->order[i]][k];
}

int tec_read_header(const TecModel *m, const uint8_t *section, int64_t length, int bands, int height,
                    int width, int64_t step, Spectrum *s, int64_t *after) {
    BitReader bits = {section, 8 * length, 0, 0};
    Basis usual = {0};
    const Basis *before = &usual;
    int status = read_layout(&bits, bands, height, width, &s->layout);
    if (!status) status = read_means(&bits, bands, step, s->means);
    if (!status && tec_usual_bases(bands)) {
        int number = (int)tec_get(&bits, 2);
        if (number > tec_usual_bases(bands)) return TEC_DAMAGED;
        tec_usual_basis(m, &s->layout, number, &usual);
    }
    for (int class = 0; class < CLASSES && !status && !bits.short_of; class++) {
        int count = tec_bands_of(&s->layout, class);
        if (count)
            status = tec_read_basis(&bits, count, class, tec_angle_base(&s->layout, class), before, &s->bases[class]);
        else s->bases[class].bands = s->bases[class].components = 0;
        before = &s->bases[class];
    }
    *after = (bits.at + 7) / 8;
    return status ? status : bits.short_of ? TEC_DAMAGED : TEC_OK;
}
