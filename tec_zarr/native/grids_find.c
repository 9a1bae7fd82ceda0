/* Finds the grid of each band of a tile, and proves it by fitting it. Encoders only.
 *
 * Along an axis an enlarged band has marks that depend on the place of a sample within its cell.
 * Repeated samples are equal within a cell. Bilinear samples have no second difference between two
 * cell centres, apart from rounding (for a factor of 2: no third difference from the last sample of a
 * cell to the first of the second next). A few lines of each band are enough to rule out nearly every
 * factor and phase. The others are fitted. */
#include <stdlib.h>
#include <string.h>

#include "fastest.h"
#include "grids.h"
#include "tile.h"

#define LINES 24       /* of each band and date in which marks are counted */
#define DATES 3
#define SEEN 0.9       /* least share of marks for a grid to be fitted */
#define MOVING 0.05    /* least share of neighbours that differ; with fewer, marks prove nothing */
#define TOLERANCE 0.08 /* largest share of samples that need not be those of the grid */
#define SMALLEST 16    /* samples along an axis */
#define LEVELS 3       /* equal neighbours, and second and third differences of no more than rounding */

enum { FAR = 2 };

/* A band of a tile: dates lie `dates_apart` samples apart. */
typedef struct {
    const int32_t *samples;
    const uint8_t *known;
    int dates, height, width;
    int64_t dates_apart;
} Band;

/* Marks at each place along an axis, and how many were looked for. */
typedef struct {
    int size;
    int32_t *seen[LEVELS], *looked[LEVELS];
} Marks;

/* The phases that marks allow, by kind and factor; -1 for none. */
typedef struct {
    int phase[2][MOST_FACTOR + 1];
} Possible;

static int floor_of(int a, int b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

static int spaced(int i, int count, int size) { return count > 1 ? (int)((int64_t)i * (size - 1) / (count - 1)) : 0; }

/* Count marks of one line of known samples. */
FASTEST static void count_all(const int32_t *restrict x, Marks *m) {
    int32_t *restrict equal = m->seen[0], *restrict straight = m->seen[1], *restrict even = m->seen[2];
    for (int i = 0; i + 1 < m->size; i++) equal[i] += x[i + 1] == x[i];
    for (int i = 0; i + 2 < m->size; i++) {
        int32_t d = x[i + 2] - 2 * x[i + 1] + x[i];
        straight[i] += (d <= 2) & (d >= -2);
    }
    for (int i = 0; i + 3 < m->size; i++) {
        int32_t d = x[i + 3] - 3 * x[i + 2] + 3 * x[i + 1] - x[i];
        even[i] += (d <= 4) & (d >= -4);
    }
    for (int level = 0; level < LEVELS; level++)
        for (int i = 0; i + level + 1 < m->size; i++) m->looked[level][i]++;
}

/* Count marks of one line, whose samples lie `apart` from each other. */
static void count_marks(const int32_t *line, const uint8_t *known, int64_t apart, Marks *m) {
    int there = 0; /* how many known samples end at i */
    for (int i = 0; i < m->size; i++) {
        there = known[i * apart] ? there + 1 : 0;
        for (int level = 0; level < LEVELS && level < i && there >= level + 2; level++) {
            const int32_t *x = line + (i - level - 1) * apart;
            int32_t d = x[apart] - x[0];
            if (level == 1) d = x[2 * apart] - 2 * x[apart] + x[0];
            if (level == 2) d = x[3 * apart] - 3 * x[2 * apart] + 3 * x[apart] - x[0];
            m->looked[level][i - level - 1]++;
            m->seen[level][i - level - 1] += d <= 2 * level && d >= -2 * level;
        }
    }
}

/* Whether a grid leaves a mark of its level at place `i`. */
static int leaves_mark(int kind, int factor, int start) {
    if (kind == REPEATED) return floor_of(start, factor) == floor_of(start + 1, factor);
    if (factor == 2) return (start & 1) == 1; /* the last of a cell, two of the next, one of that after it */
    /* Twice the distances of three samples from the centre of cell 0: no other centre between them. */
    int first = 2 * start + 1 - factor, last = 2 * start + 5 - factor;
    return floor_of(first, 2 * factor) == floor_of(last - 1, 2 * factor);
}

static int level_of(int kind, int factor) { return kind == REPEATED ? 0 : factor == 2 ? 2 : 1; }

/* Returns whether any kind and factor is possible. */
static int find_possible(const Marks *m, Possible *out) {
    int64_t equal = 0, looked = 0;
    int any = 0;
    for (int i = 0; i < m->size; i++) equal += m->seen[0][i], looked += m->looked[0][i];
    for (int kind = 0; kind < 2; kind++)
        for (int factor = 2; factor <= MOST_FACTOR; factor++) {
            int level = level_of(kind, factor);
            int64_t seen_by[MOST_FACTOR] = {0}, looked_by[MOST_FACTOR] = {0};
            double best = -1;
            out->phase[kind][factor] = -1;
            if (!looked || equal > (1 - MOVING) * looked) continue;
            for (int residue = 0; residue < factor; residue++) { /* of places: marks repeat with the cells */
                int64_t seen = 0, count = 0;
                for (int i = residue; i < m->size; i += factor) seen += m->seen[level][i], count += m->looked[level][i];
                for (int phase = 0; phase < factor; phase++)
                    if (leaves_mark(kind, factor, residue - phase)) seen_by[phase] += seen, looked_by[phase] += count;
            }
            for (int phase = 0; phase < factor; phase++) {
                double share = (double)seen_by[phase] / (looked_by[phase] ? (double)looked_by[phase] : 1);
                if (share > best) best = share, out->phase[kind][factor] = phase;
            }
            int phase = out->phase[kind][factor];
            if (best < SEEN || !looked_by[phase]) out->phase[kind][factor] = -1;
            else any = 1;
        }
    return any;
}

/* The phases along rows (`down`) or columns that a band allows; 1 if any, negative without memory. */
static int look(const Band *b, int down, Possible *out) {
    int size = down ? b->height : b->width, lines = down ? b->width : b->height;
    int dates = b->dates < DATES ? b->dates : DATES, count = lines < LINES ? lines : LINES;
    int64_t apart = down ? b->width : 1, lines_apart = down ? 1 : b->width;
    int32_t *all = calloc((2 * LEVELS + 1) * (size_t)size, sizeof *all);
    if (!all) return TEC_NO_MEMORY;
    int32_t *copy = all + 2 * LEVELS * (size_t)size;
    Marks m = {.size = size};
    for (int level = 0; level < LEVELS; level++) {
        m.seen[level] = all + 2 * level * (size_t)size;
        m.looked[level] = m.seen[level] + size;
    }
    for (int d = 0; d < dates; d++)
        for (int l = 0; l < count; l++) {
            int64_t at = spaced(d, dates, b->dates) * b->dates_apart + spaced(l, count, lines) * lines_apart;
            if (b->known) count_marks(b->samples + at, b->known + at, apart, &m);
            else {
                for (int i = 0; i < size; i++) copy[i] = b->samples[at + i * apart];
                count_all(copy, &m);
            }
        }
    int any = find_possible(&m, out);
    free(all);
    return any;
}

/* Whether all but a few samples of a band are those of native values on a grid, and none of them is
 * far away: where the RMS of what is missed is over `error` DN, it is FAR. Negative is a status. */
static int prove(const Band *b, const TecGrid *grid, double error) {
    Axis rows = {.first = 0}, columns = {.first = 0};
    size_t count = (size_t)b->height * (size_t)b->width;
    int status = tec_axis(&rows, grid->kind, grid->factor, grid->row, b->height);
    if (!status) status = tec_axis(&columns, grid->kind, grid->factor, grid->column, b->width);
    int32_t *native = 0;
    int64_t there = 0, wrong = 0;
    double off = 0;
    if (!status) {
        size_t values = (size_t)rows.values * (size_t)columns.values;
        native = malloc(sizeof *native * (values + count + 2 * (size_t)b->width));
        if (!native) status = TEC_NO_MEMORY;
        int32_t *work = native + values, *again = work + 2 * (size_t)b->width;
        for (int d = 0; d < b->dates && !status; d++)
            for (size_t i = 0; i < count; i++) there += !b->known || b->known[d * b->dates_apart + (int64_t)i];
        for (int d = 0; d < b->dates && !status && wrong <= TOLERANCE * there; d++) {
            const int32_t *samples = b->samples + d * b->dates_apart;
            const uint8_t *known = b->known ? b->known + d * b->dates_apart : 0;
            status = tec_fit(grid->kind, &rows, &columns, samples, known, native);
            if (status) break;
            tec_enlarge_values(grid->kind, grid->factor, &rows, &columns, native, work, again);
            for (size_t i = 0; i < count; i++) {
                double miss = again[i] - samples[i];
                if (miss == 0 || (known && !known[i])) continue;
                wrong++;
                off += miss * miss;
            }
        }
    }
    free(native);
    tec_axis_end(&rows), tec_axis_end(&columns);
    if (status) return status;
    return wrong > TOLERANCE * there ? 0 : off > error * error * there ? FAR : 1;
}

/* Find the grid of a band. */
static int find_grid(const Band *b, double error, TecGrid *grid) {
    Possible across, down;
    *grid = (TecGrid){0, 0, 0, 0};
    int any = look(b, 0, &across);
    if (any > 0) any = look(b, 1, &down);
    if (any <= 0) return any;
    for (int kind = 0; kind < 2; kind++)
        for (int factor = MOST_FACTOR; factor >= 2; factor--) {
            TecGrid found = {kind, factor, down.phase[kind][factor], across.phase[kind][factor]};
            if (found.row < 0 || found.column < 0) continue;
            int proved = prove(b, &found, error);
            if (proved == 1) *grid = found;
            if (proved) return proved == 1 || proved == FAR ? TEC_OK : proved;
        }
    return TEC_OK;
}

int tec_tile_grids(const int32_t *dn, const uint8_t *known, int dates, int bands, int height, int width,
                   int quality, TecGrid *grids) {
    if (!tec_is_tile(bands, height, width, quality) || dates < 1) return TEC_BAD_ARGUMENT;
    double error = (double)tec_step(quality) / 256 / 64;
    int64_t samples = (int64_t)height * width;
    TecGrid kinds[MOST_GRIDS + 1];
    int count = 0;
    for (int b = 0; b < bands; b++) {
        Band band = {dn + b * samples, known ? known + b * samples : 0, dates, height, width, bands * samples};
        grids[b] = (TecGrid){0, 0, 0, 0};
        if (height < SMALLEST || width < SMALLEST) continue;
        int status = find_grid(&band, error > 0.5 ? error : 0.5, &grids[b]), i = 0;
        if (status < 0) return status;
        while (i < count && memcmp(&kinds[i], &grids[b], sizeof *kinds)) i++;
        if (grids[b].factor && i == count && count <= MOST_GRIDS) kinds[count++] = grids[b];
    }
    if (count > MOST_GRIDS) memset(grids, 0, sizeof *grids * (size_t)bands);
    return TEC_OK;
}
