/* The bound layer of an array: every sample within its bound; see planes.h.
 *
 * docs/error-bounds.md describes the bytes. How a plane is predicted and coded is in planes.c. Here
 * are the order of the planes, what each may see of the others, and the grids.
 */
#include "grids.h"
#include "planes.h"

#include <stdlib.h>
#include <string.h>

#define CHECKSUM_BYTES 4
#define NEAR 3 /* bands of the same date among the wide references */
#define SLACKS 32

typedef struct {
    TecGrid grid; /* the factor is 1 if the band lies on none */
    Axis rows, columns;
    int64_t native_at; /* encoder: of the first native value */
    Plane now, before, means; /* of this date, of the date before, and on the grid of another band */
    int has_means;
    TecGrid means_on;
    int64_t low; /* of the samples of this date */
    int coarse;
} Band;

typedef struct {
    Coder coder;
    Learnt learnt;
    int64_t dates;
    int bands, height, width;
    const uint8_t *labels;
    const int32_t *bounds, *sample_bounds, *wanted, *natives;
    int32_t *dn;
    Band *band;
    int32_t *order, *near; /* bands in order; for each, NEAR positions of earlier ones, or -1 */
    uint8_t *skipped, *class; /* of the samples of a plane */
    int32_t *values, *limits; /* of a plane */
    uint32_t *lines; /* two rows between native values and samples */
    int32_t *learnt_numbers; /* where learning begins and ended, or null */
} Job;

static uint32_t checksum_of(const int32_t *values, int64_t count) { /* CRC-32 of little-endian words */
    uint32_t table[4][256];
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++) c = c & 1 ? 0xedb88320u ^ c >> 1 : c >> 1;
        table[0][i] = c;
    }
    for (int k = 1; k < 4; k++)
        for (int i = 0; i < 256; i++) table[k][i] = table[k - 1][i] >> 8 ^ table[0][table[k - 1][i] & 255];
    uint32_t c = 0xffffffffu;
    for (int64_t i = 0; i < count; i++) {
        c ^= (uint32_t)values[i];
        c = table[3][c & 255] ^ table[2][c >> 8 & 255] ^ table[1][c >> 16 & 255] ^ table[0][c >> 24];
    }
    return ~c;
}

static int same_grid(const TecGrid *a, const TecGrid *b) {
    return a->kind == b->kind && a->factor == b->factor && a->row == b->row && a->column == b->column;
}

static int is_gridded(const Band *b) { return b->grid.factor > 1; }

/* ---- references */

/* The first sample of each cell, and the end; cells beyond the edge have those of their neighbour. */
static int starts_of(const Axis *axis, int32_t **starts, int32_t **ends) {
    *starts = malloc(2 * sizeof **starts * (size_t)axis->values);
    if (!*starts) return TEC_NO_MEMORY;
    *ends = *starts + axis->values;
    for (int i = 0; i < axis->values; i++) (*starts)[i] = -1;
    for (int i = 0; i < axis->size; i++) {
        int cell = axis->cell[i];
        if ((*starts)[cell] < 0) (*starts)[cell] = i;
        (*ends)[cell] = i + 1;
    }
    int first = axis->cell[0], last = axis->cell[axis->size - 1];
    for (int i = 0; i < axis->values; i++) {
        if (i >= first && i <= last) continue;
        int beside = i < first ? first : last;
        (*starts)[i] = (*starts)[beside], (*ends)[i] = (*ends)[beside];
    }
    return TEC_OK;
}

/* The means of a band over the cells of another one. */
static int means_of(const Job *job, Band *b, const Band *on, const int32_t *samples) {
    int status = tec_plane_begin(&b->means, on->rows.values, on->columns.values);
    int32_t *top = 0, *bottom, *left = 0, *right;
    if (!status) status = starts_of(&on->rows, &top, &bottom);
    if (!status) status = starts_of(&on->columns, &left, &right);
    for (int y = 0; y < b->means.height && !status; y++)
        for (int x = 0; x < b->means.width; x++) {
            int64_t sum = 0, sizes = 0;
            for (int i = top[y]; i < bottom[y]; i++)
                for (int j = left[x]; j < right[x]; j++) {
                    sum += (samples[(int64_t)i * job->width + j] - b->low) >> b->coarse;
                    sizes += *size_at(&b->now, b->rows.cell[i], b->columns.cell[j]);
                }
            int64_t count = (int64_t)(bottom[y] - top[y]) * (right[x] - left[x]);
            *value_at(&b->means, y, x) = (int32_t)(sum / count);
            *size_at(&b->means, y, x) = (uint8_t)(sizes / count);
        }
    free(top), free(left);
    if (status) return status;
    b->means.shift = b->now.shift;
    b->means_on = on->grid;
    b->has_means = 1;
    tec_plane_margins(&b->means);
    return TEC_OK;
}

static int reference(const Job *job, int64_t date, int of, const Band *on, const Plane **out) {
    Band *b = job->band + of;
    if (same_grid(&b->grid, &on->grid)) {
        *out = &b->now;
        return TEC_OK;
    }
    *out = &b->means;
    if (b->has_means && same_grid(&b->means_on, &on->grid)) return TEC_OK;
    int64_t plane = (int64_t)job->height * job->width;
    return means_of(job, b, on, job->dn + (date * job->bands + of) * plane);
}

/* What a band sees: bands of this date, and itself in the date before. */
static int references(const Job *job, int64_t date, int position, Task *task) {
    const Band *b = job->band + job->order[position];
    const int32_t *near = job->near + (int64_t)NEAR * position;
    int status = TEC_OK;
    for (int i = 0; i < NEAR && !status; i++)
        if (near[i] >= 0)
            status = reference(job, date, job->order[near[i]], b, &task->wide[task->wide_count++]);
    if (date) task->wide[task->wide_count++] = &b->before;
    for (int i = position - 1; i >= 0 && task->far_count < FAR && !status; i--)
        if (i != near[0] && i != near[1] && i != near[2])
            status = reference(job, date, job->order[i], b, &task->far[task->far_count++]);
    return status;
}

/* ---- planes on grids */

static void limits_of(Coder *c, int64_t *low, int64_t *high) {
    int narrow = (int)tec_code_bits(c, *low >= 0 && *high < 65536, 1);
    int64_t less = narrow ? 0 : INT32_MIN;
    int bits = narrow ? 16 : 32;
    *low = tec_code_bits(c, (uint32_t)(*low - less), bits) + less;
    *high = tec_code_bits(c, (uint32_t)(*high - less), bits) + less;
}

static void extent(const int32_t *values, const uint8_t *skipped, int64_t count, int64_t *low, int64_t *high) {
    *low = *high = 0;
    int found = 0;
    for (int64_t i = 0; i < count; i++) {
        if (skipped && skipped[i]) continue;
        if (!found || values[i] < *low) *low = values[i];
        if (!found || values[i] > *high) *high = values[i];
        found = 1;
    }
}

/* Native values that no sample hangs on are skipped; others have the smallest bound of theirs. */
static void gather(const Job *job, const Band *b, const uint8_t *skipped, const int32_t *bounds) {
    int64_t count = (int64_t)b->rows.values * b->columns.values;
    memset(job->skipped, skipped ? 1 : 0, (size_t)count);
    if (bounds)
        for (int64_t i = 0; i < count; i++) job->limits[i] = INT32_MAX;
    if (!skipped && !bounds) return;
    for (int y = 0; y < job->height; y++)
        for (int x = 0; x < job->width; x++) {
            int64_t from = (int64_t)y * job->width + x;
            if (skipped && skipped[from]) continue;
            for (int part = 0; part < 4; part++) {
                int row = part & 1 ? b->rows.second[y] : b->rows.first[y];
                int column = part & 2 ? b->columns.second[x] : b->columns.first[x];
                int64_t into = (int64_t)row * b->columns.values + column;
                job->skipped[into] = 0;
                if (bounds && bounds[from] < job->limits[into]) job->limits[into] = bounds[from];
            }
        }
}

/* One row of samples from two rows of values over `low` that were widened already. */
static inline void blend(const Axis *rows, int y, const uint32_t *a, const uint32_t *b, uint64_t area, int width,
                         int64_t low, int64_t least, int64_t most, int32_t *out, uint8_t *class) {
    uint64_t weight = (uint64_t)rows->weight[y], other = (uint64_t)rows->unit - weight;
    for (int x = 0; x < width; x++) {
        uint64_t sum = a[x] * other + b[x] * weight + area / 2, value = sum / area, rest = sum - value * area;
        int64_t sample = (int64_t)value + low;
        out[x] = (int32_t)(sample < least ? least : sample > most ? most : sample);
        uint64_t near = rest < area - rest ? rest : area - rest;
        class[x] = !near ? 0 : 16 * near <= area ? 1 : 2;
    }
}

/* Samples of native values, and the class of each: how close it is to being rounded otherwise. */
static void enlarge(const Job *job, const Band *b, int64_t low, int64_t least, int64_t most, int32_t *out) {
    const Axis *rows = &b->rows, *columns = &b->columns;
    uint32_t *line[2] = {job->lines, job->lines + job->width};
    int held[2] = {-1, -1};
    uint64_t area = (uint64_t)rows->unit * (uint64_t)columns->unit;
    for (int y = 0; y < job->height; y++) {
        int of[2] = {rows->first[y], rows->second[y]};
        for (int part = 0; part < 2; part++) {
            int at = of[part] & 1;
            if (held[at] == of[part]) continue;
            held[at] = of[part];
            const int32_t *from = job->values + (int64_t)of[part] * columns->values;
            for (int x = 0; x < job->width; x++) {
                uint32_t weight = (uint32_t)columns->weight[x];
                line[at][x] = (uint32_t)(from[columns->first[x]] - (int32_t)low) * ((uint32_t)columns->unit - weight) +
                              (uint32_t)(from[columns->second[x]] - (int32_t)low) * weight;
            }
        }
        const uint32_t *one = line[of[0] & 1], *two = line[of[1] & 1];
        int64_t at = (int64_t)y * job->width;
        switch (area) { /* so that the two usual divisions are by constants */
        case 16: blend(rows, y, one, two, 16, job->width, low, least, most, out + at, job->class + at); break;
        case 144: blend(rows, y, one, two, 144, job->width, low, least, most, out + at, job->class + at); break;
        default: blend(rows, y, one, two, area, job->width, low, least, most, out + at, job->class + at);
        }
    }
}

static int64_t steps_off(int64_t missing, int64_t bound) { /* how many steps to be within the bound */
    int64_t size = missing < 0 ? -missing : missing, steps = (size + bound) / (2 * bound + 1);
    return missing < 0 ? -steps : steps;
}

/* Correct the samples that are not within their bounds yet. */
static void correct(Job *job, const uint8_t *skipped, int64_t bound, const int32_t *bounds, int64_t low,
                    int64_t high, const int32_t *wanted, int32_t *out) {
    int64_t count = (int64_t)job->height * job->width;
    int any = 0;
    for (int64_t i = 0; wanted && i < count && !any; i++)
        any = !(skipped && skipped[i]) && steps_off((int64_t)wanted[i] - out[i], bounds ? bounds[i] : bound);
    if (!tec_code_bits(&job->coder, (uint32_t)any, 1)) return;
    uint8_t *above = (uint8_t *)job->lines; /* sizes of the corrections above, 2 at most */
    memset(above, 0, (size_t)job->width);
    for (int64_t i = 0; i < count; i++) {
        int x = (int)(i % job->width), left = x ? above[x - 1] : 0, scale = 9 * job->class[i] + 3 * above[x] + left;
        above[x] = 0;
        if (skipped && skipped[i]) continue;
        int64_t most = bounds ? bounds[i] : bound;
        int64_t steps = wanted ? steps_off((int64_t)wanted[i] - out[i], most) : 0;
        steps = tec_code_symbol(&job->coder, &job->learnt.corrections, scale, 4, steps);
        if (!steps) continue;
        above[x] = steps > 1 || steps < -1 ? 2 : 1;
        out[i] = (int32_t)clip(out[i] + (int64_t)((uint64_t)steps * (uint64_t)(2 * most + 1)), low, high);
    }
}

/* Encode or decode one plane. */
static int code_plane(Job *job, int64_t date, int position) {
    int of = job->order[position];
    Band *b = job->band + of;
    Coder *c = &job->coder;
    int64_t count = (int64_t)job->height * job->width, at = (date * job->bands + of) * count;
    const uint8_t *skipped = job->labels ? job->labels + at : 0;
    const int32_t *bounds = job->bounds[of] < 0 ? job->sample_bounds + at : 0;
    const int32_t *wanted = job->wanted ? job->wanted + at : 0;
    int32_t *out = job->dn + at;
    int64_t bound = bounds ? 0 : job->bounds[of], low = 0, high = 0;
    if (wanted) extent(wanted, skipped, count, &low, &high);
    limits_of(c, &low, &high);
    if (low > high) return TEC_DAMAGED;
    Plane *p = &b->now;
    b->low = low;
    b->coarse = bits_in((uint64_t)(high - low)) > VALUE_BITS ? bits_in((uint64_t)(high - low)) - VALUE_BITS : 0;
    b->has_means = 0;
    Task task = {.plane = p, .skipped = skipped, .bound = (uint32_t)bound, .bounds = bounds, .low = low,
                 .high = high, .wanted = wanted, .decoded = out};
    int status = low == high ? TEC_OK : references(job, date, position, &task);
    if (status) return status;
    if (low == high) {
        for (int64_t i = 0; i < count; i++) out[i] = (int32_t)low;
        return TEC_OK;
    }
    if (!is_gridded(b)) return tec_plane_code(c, &job->learnt, &task);
    gather(job, b, skipped, bounds);
    int64_t values = (int64_t)b->rows.values * b->columns.values;
    if (wanted) {
        task.wanted = job->natives + b->native_at + date * values;
        extent(task.wanted, job->skipped, values, &task.low, &task.high);
    }
    limits_of(c, &task.low, &task.high);
    if (task.low > task.high) return TEC_DAMAGED;
    int doubled = b->grid.kind == BILINEAR && b->grid.factor == 2;
    int slack = (int)tec_code_bits(c, !doubled ? 0 : bounds ? 5 : 8, 4);
    task.skipped = skipped ? job->skipped : 0;
    task.bound = (uint32_t)(bound + (bound * slack + SLACKS / 2) / SLACKS);
    task.bounds = bounds ? job->limits : 0;
    for (int64_t i = 0; bounds && i < values; i++) {
        int64_t wider = job->limits[i] + ((int64_t)job->limits[i] * slack + SLACKS / 2) / SLACKS;
        job->limits[i] = wider > INT32_MAX ? INT32_MAX : (int32_t)wider;
    }
    task.decoded = job->values;
    task.blended = doubled && !bounds ? (uint32_t)bound : 0;
    if (task.low == task.high)
        for (int64_t i = 0; i < values; i++) job->values[i] = (int32_t)task.low;
    else status = tec_plane_code(c, &job->learnt, &task);
    if (status) return status;
    enlarge(job, b, task.low, low, high, out);
    correct(job, skipped, bound, bounds, low, high, wanted, out);
    return TEC_OK;
}

/* ---- sections */

/* Code which bands come when, which they see, and the grids. */
static int code_plan(Job *job, const TecGrid *grids) {
    Coder *c = &job->coder;
    int bits = bits_in((uint64_t)(job->bands - 1));
    for (int i = 0; i < job->bands; i++) {
        job->order[i] = (int32_t)tec_code_bits(c, (uint32_t)job->order[i], bits);
        if (job->order[i] >= job->bands || job->band[job->order[i]].grid.factor) return TEC_DAMAGED;
        job->band[job->order[i]].grid.factor = 1;
    }
    for (int i = 0; i < job->bands; i++) {
        int32_t *near = job->near + (int64_t)NEAR * i;
        for (int k = 0; k < NEAR; k++) {
            near[k] = k < i ? (int32_t)tec_code_bits(c, (uint32_t)near[k], bits) : -1;
            if (near[k] >= i) return TEC_DAMAGED;
            for (int m = 0; k < i && m < k; m++)
                if (near[m] == near[k]) return TEC_DAMAGED;
        }
    }
    int64_t at = 0;
    for (int i = 0; i < job->bands; i++) {
        Band *b = job->band + i;
        TecGrid g = grids ? grids[i] : (TecGrid){0};
        if (tec_code_bits(c, g.factor != 0, 1)) {
            g.kind = (int32_t)tec_code_bits(c, (uint32_t)g.kind, 1);
            g.factor = (int32_t)tec_code_bits(c, (uint32_t)g.factor - 1, 3) + 1;
            g.row = (int32_t)tec_code_bits(c, (uint32_t)g.row, 3);
            g.column = (int32_t)tec_code_bits(c, (uint32_t)g.column, 3);
            if (!tec_is_grid(&g)) return TEC_DAMAGED;
            b->grid = g;
        } else b->grid = (TecGrid){REPEATED, 1, 0, 0};
        int status = tec_axis(&b->rows, b->grid.kind, b->grid.factor, b->grid.row, job->height);
        if (!status) status = tec_axis(&b->columns, b->grid.kind, b->grid.factor, b->grid.column, job->width);
        if (status) return status;
        b->native_at = at;
        if (is_gridded(b)) at += job->dates * b->rows.values * b->columns.values;
    }
    return TEC_OK;
}

static int code_planes(Job *job) {
    for (int64_t date = 0; date < job->dates; date++)
        for (int i = 0; i < job->bands; i++) {
            Band *b = job->band + job->order[i];
            Plane before = b->before;
            b->before = b->now;
            b->now = before;
            int status = tec_plane_begin(&b->now, b->rows.values, b->columns.values);
            if (!status) status = code_plane(job, date, i);
            if (status) return status;
        }
    return TEC_OK;
}

static int job_run(Job *job, const TecGrid *grids, const int32_t *order, const int32_t *near) {
    if (job->dates < 1 || job->bands < 1 || job->height < 1 || job->width < 1) return TEC_BAD_ARGUMENT;
    size_t count = (size_t)job->bands;
    size_t most = ((size_t)job->height + 2) * ((size_t)job->width + 2);
    job->band = calloc(count, sizeof *job->band);
    job->order = calloc(count * (1 + NEAR), sizeof *job->order);
    job->skipped = malloc(2 * most);
    job->values = malloc(2 * most * sizeof *job->values);
    job->lines = malloc(2 * (size_t)job->width * sizeof *job->lines);
    int status = job->band && job->order && job->skipped && job->values && job->lines ? TEC_OK : TEC_NO_MEMORY;
    if (!status) {
        job->near = job->order + count;
        job->class = job->skipped + most;
        job->limits = job->values + most;
        if (order) memcpy(job->order, order, count * sizeof *order);
        if (near) memcpy(job->near, near, NEAR * count * sizeof *near);
        tec_learnt_begin(&job->learnt);
        if (job->learnt_numbers) tec_learnt_from(&job->learnt, job->learnt_numbers);
        tec_coder_begin(&job->coder);
        status = code_plan(job, grids);
    }
    if (!status) status = code_planes(job);
    if (!status && job->learnt_numbers) tec_learnt_into(&job->learnt, job->learnt_numbers);
    for (size_t i = 0; job->band && i < count; i++) {
        Band *b = job->band + i;
        tec_plane_end(&b->now), tec_plane_end(&b->before), tec_plane_end(&b->means);
        tec_axis_end(&b->rows), tec_axis_end(&b->columns);
    }
    free(job->band), free(job->order), free(job->skipped), free(job->values), free(job->lines);
    return status;
}

int64_t tec_bound_encode(const int32_t *wanted, int64_t dates, int64_t bands, int64_t height, int64_t width,
                         const uint8_t *labels, const int32_t *bounds, const int32_t *sample_bounds,
                         const TecGrid *grids, const int32_t *natives, const int32_t *order,
                         const int32_t *near, int32_t *decoded, uint8_t *section, int64_t capacity,
                         int32_t *learnt) {
    if (tec_too_large(dates, bands, height, width)) return TEC_BAD_ARGUMENT;
    if (capacity < CHECKSUM_BYTES) return TEC_TOO_SMALL;
    Job *job = calloc(1, sizeof *job);
    if (!job) return TEC_NO_MEMORY;
    *job = (Job){.coder.encoding = 1, .dates = dates, .bands = (int)bands, .height = (int)height,
                 .width = (int)width, .labels = labels, .bounds = bounds, .sample_bounds = sample_bounds,
                 .wanted = wanted, .natives = natives, .dn = decoded, .learnt_numbers = learnt};
    job->coder.e = begin_encoding(section + CHECKSUM_BYTES, capacity - CHECKSUM_BYTES);
    int64_t status = job_run(job, grids, order, near);
    if (!status) status = end_encoding(&job->coder.e, section + CHECKSUM_BYTES);
    free(job);
    if (status < 0) return status == -1 ? TEC_TOO_SMALL : status;
    uint32_t sum = checksum_of(decoded, dates * bands * height * width);
    for (int i = 0; i < CHECKSUM_BYTES; i++) section[i] = (uint8_t)(sum >> 8 * i);
    return status + CHECKSUM_BYTES;
}

/* The bound layer of a whole chunk. */
int tec_bound_layer(const uint8_t *section, int64_t length, int64_t dates, int64_t bands, int64_t height,
                    int64_t width, const uint8_t *labels, const int32_t *bounds,
                    const int32_t *sample_bounds, int32_t *dn) {
    if (tec_too_large(dates, bands, height, width)) return TEC_BAD_ARGUMENT;
    if (length < CHECKSUM_BYTES) return TEC_DAMAGED;
    Job *job = calloc(1, sizeof *job);
    if (!job) return TEC_NO_MEMORY;
    *job = (Job){.dates = dates, .bands = (int)bands, .height = (int)height, .width = (int)width,
                 .labels = labels, .bounds = bounds, .sample_bounds = sample_bounds, .dn = dn};
    job->coder.d = begin_decoding(section + CHECKSUM_BYTES, length - CHECKSUM_BYTES);
    int status = job_run(job, 0, 0, 0);
    free(job);
    if (status) return status;
    uint32_t sum = checksum_of(dn, dates * bands * height * width), wanted = 0;
    for (int i = 0; i < CHECKSUM_BYTES; i++) wanted |= (uint32_t)section[i] << 8 * i;
    return sum == wanted ? TEC_OK : TEC_DAMAGED;
}
