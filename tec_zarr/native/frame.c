/* Decodes frames: the bytes of one chunk of an array, as docs/format.md describes them. */
#include "frame.h"
#include "tile.h"

#include <stdlib.h>

enum { MASK = 1, EXACT, LATENTS, BOUND_MAP, BOUND, POINTS, KINDS };
enum { HAS_NODATA = 1, HAS_SCALING = 2, HAS_BOUNDS = 4 };
enum { LISTED_BANDS = 255, NAMED_BANDS = 13, NO_BOUND = 65535, INDEX_BYTES = 18 };
enum { SKIPPABLE = 128, TILE = 512, IMAGE_MODEL = 1, TEMPORAL_MODEL, FLEXIBLE_MODEL };

static const TecLimits usual = {1 << 28, 1 << 12, 1 << 10, 1 << 20, 1 << 30, 1LL << 31};

#define FAIL(status, text) return *wrong = (text), (status)

/* ---- checksums */

/* Tables of the CRC32 of zlib, to take eight bytes at a time. */
typedef struct {
    uint32_t of[8][256];
} Crc;

static void crc_begin(Crc *crc) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++) c = c >> 1 ^ (c & 1 ? 0xedb88320u : 0);
        crc->of[0][i] = c;
    }
    for (int k = 1; k < 8; k++)
        for (int i = 0; i < 256; i++) {
            uint32_t c = crc->of[k - 1][i];
            crc->of[k][i] = c >> 8 ^ crc->of[0][c & 255];
        }
}

static uint32_t crc_of(const Crc *crc, const uint8_t *p, int64_t n) {
    uint32_t c = 0xffffffffu;
    for (; n >= 8; n -= 8, p += 8) {
        c ^= (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
        c = crc->of[7][c & 255] ^ crc->of[6][c >> 8 & 255] ^ crc->of[5][c >> 16 & 255] ^
            crc->of[4][c >> 24] ^ crc->of[3][p[4]] ^ crc->of[2][p[5]] ^ crc->of[1][p[6]] ^
            crc->of[0][p[7]];
    }
    for (; n; n--, p++) c = c >> 8 ^ crc->of[0][(c ^ *p) & 255];
    return ~c;
}

uint32_t tec_crc32(const uint8_t *bytes, int64_t length) {
    Crc crc;
    crc_begin(&crc);
    return crc_of(&crc, bytes, length);
}

/* ---- the header */

static double read_double(Cursor *c) {
    uint64_t bits = read_number(c, 8);
    double value;
    memcpy(&value, &bits, 8);
    return value;
}

/* Read a little-endian value of a dtype. */
static double read_value(Cursor *c, int dtype) {
    if (dtype == UINT16) return (double)read_number(c, 2);
    if (dtype == INT16) return (double)(int16_t)(uint16_t)read_number(c, 2);
    if (dtype == FLOAT64) return read_double(c);
    uint32_t bits = (uint32_t)read_number(c, 4);
    float value;
    memcpy(&value, &bits, 4);
    return (double)value;
}

static int is_finite(double value) { return value - value == 0; }

static int read_bands(Cursor *c, TecFrame *f, const char **wrong) {
    int code = (int)read_number(c, 1);
    if (code != LISTED_BANDS && code > 2) FAIL(TEC_NEWER, "the header has an unknown list of bands");
    if (code == 1)
        for (int i = 0; i < 13; i++)
            if (i != 10) f->band_numbers[f->band_count++] = (uint8_t)i;
    if (code == 2) {
        /* B8A stands behind B08, and the L1C product has B10. */
        for (int i = 0; i < 13; i++) f->band_numbers[f->band_count++] = (uint8_t)i;
    }
    if (code != LISTED_BANDS) return TEC_OK;
    f->band_count = (int)read_number(c, 1);
    for (int i = 0; i < f->band_count; i++) {
        f->band_numbers[i] = (uint8_t)read_number(c, 1);
        if (f->band_numbers[i] >= NAMED_BANDS) FAIL(TEC_DAMAGED, "the header names unknown bands");
    }
    if (!f->band_count) f->band_count = -1; /* no list of bands fits it */
    return TEC_OK;
}

static int read_shape(Cursor *c, TecFrame *f, const TecLimits *limits, const char **wrong) {
    static const int places[4][4] = {{0, 1, 2, 3}, {1, 2, 3}, {0, 2, 3}, {2, 3}};
    int rank = f->axes == 0 ? 4 : f->axes == 3 ? 2 : 3;
    int64_t samples = 1;
    for (int i = 0; i < 4; i++) f->shape[i] = 1;
    for (int i = 0; i < rank; i++) {
        int64_t n = f->shape[places[f->axes][i]] = read_varint(c);
        if (!n) FAIL(TEC_DAMAGED, "the header has an axis of length 0");
        if (n > limits->samples / samples) FAIL(TEC_OVER_LIMIT, "a chunk of too many samples");
        samples *= n;
    }
    if ((uint64_t)samples > SIZE_MAX / 16) FAIL(TEC_OVER_LIMIT, "a chunk that no memory holds");
    if (f->shape[1] > limits->bands) FAIL(TEC_OVER_LIMIT, "a chunk of too many bands");
    if (f->band_count && f->band_count != f->shape[1])
        FAIL(TEC_DAMAGED, "the list of bands in the header does not fit the shape");
    return TEC_OK;
}

static int read_units(Cursor *c, TecFrame *f, int flags, const char **wrong) {
    f->nodata_count = flags & HAS_NODATA ? (int)read_number(c, 1) : 1;
    f->nodata[0] = 0;
    for (int i = 0; i < f->nodata_count && flags & HAS_NODATA; i++) {
        f->nodata[i] = read_value(c, f->dtype);
        int bad = !is_finite(f->nodata[i]);
        for (int k = 0; k < i; k++) bad |= f->nodata[k] == f->nodata[i];
        if (bad && !c->short_of) FAIL(TEC_DAMAGED, "the header has nodata values that cannot be");
    }
    f->scale = f->dtype < FLOAT32 ? 1 : 1e-4;
    f->offset = 0;
    if (flags & HAS_SCALING) f->scale = read_double(c), f->offset = read_double(c);
    if (!is_finite(f->scale) || !(f->scale > 0 || c->short_of) || !is_finite(f->offset))
        FAIL(TEC_DAMAGED, "the header has a scale or an offset that cannot be");
    return TEC_OK;
}

static int not_negative(double value) { return value >= 0; } /* nor NaN */

/* Read bounds and errors, of which the frame keeps the places. */
static int read_bounds(Cursor *c, TecFrame *f, const uint8_t *frame, const char **wrong) {
    int64_t bands = f->shape[1];
    if (c->end - c->at < 2 * bands) FAIL(TEC_DAMAGED, "the header is cut short");
    f->bounds_at = c->at - frame;
    c->at += 2 * bands;
    f->index_count = (int)read_number(c, 1);
    f->indices_at = c->at - frame;
    for (int i = 0; i < f->index_count; i++) {
        int64_t first = (int64_t)read_number(c, 1), second = (int64_t)read_number(c, 1);
        double bound = read_double(c), error = read_double(c);
        if (first >= bands || second >= bands || first == second || !not_negative(bound) ||
            !not_negative(error))
            FAIL(TEC_DAMAGED, "the header has indices that cannot be");
    }
    for (int64_t i = 0; i < bands; i++) {
        if (!tec_is_bounded(f, frame, i)) continue;
        double error = f->dtype < FLOAT32 ? (double)read_number(c, 2) : read_value(c, f->dtype);
        if (!not_negative(error)) FAIL(TEC_DAMAGED, "the header has a negative error");
        f->bounded_count++;
    }
    return TEC_OK;
}

int tec_is_bounded(const TecFrame *f, const uint8_t *frame, int64_t band) {
    if (!f->bounds_at) return 0;
    const uint8_t *bound = frame + f->bounds_at + 2 * band, *index = frame + f->indices_at;
    int held = (bound[0] | bound[1] << 8) != NO_BOUND;
    for (int i = 0; i < f->index_count; i++, index += INDEX_BYTES)
        held |= index[0] == band || index[1] == band;
    return held;
}

/* Read the head of the next group of the section table. */
static int read_group(Cursor *c, int *kind, int64_t *count, const char **wrong) {
    int before = *kind;
    *kind = (int)read_number(c, 1);
    *count = read_varint(c);
    if (c->short_of || *kind <= before || !*count)
        FAIL(TEC_DAMAGED, "the section table is not in order");
    if (*kind >= KINDS && *kind < SKIPPABLE) FAIL(TEC_NEWER, "the frame has an unknown section");
    if (*count > (c->end - c->at) / (*kind == LATENTS ? 9 : 5))
        FAIL(TEC_DAMAGED, "the section table is cut short");
    return TEC_OK;
}

/* Check the section table, and count. */
static int check_table(Cursor c, TecFrame *f, const TecLimits *limits, const char **wrong) {
    int64_t coded = 0, count, total = f->header_bytes;
    for (int kind = 0; c.at < c.end;) {
        int status = read_group(&c, &kind, &count, wrong);
        if (status) return status;
        if (kind < KINDS && kind != LATENTS && count > 1)
            FAIL(TEC_DAMAGED, "the frame has several sections of a kind of which there is one");
        if (kind == LATENTS) f->section_count = count;
        for (int64_t i = 0; i < count; i++) {
            int64_t length = read_varint(&c);
            read_number(&c, kind == LATENTS ? 8 : 4);
            if (c.short_of) FAIL(TEC_DAMAGED, "the section table is cut short");
            if (!length && kind < KINDS && kind != LATENTS)
                FAIL(TEC_DAMAGED, "the frame has an empty section");
            total += length;
            if (kind >= LATENTS && kind <= BOUND) coded += length;
        }
    }
    f->total_bytes = total;
    if (coded > limits->coded_bytes) FAIL(TEC_OVER_LIMIT, "a chunk of too many bytes of latents");
    if (f->section_count > limits->latent_sections)
        FAIL(TEC_OVER_LIMIT, "a chunk of too many sections of latents");
    return TEC_OK;
}

static int describe(const uint8_t *frame, int64_t length, const TecLimits *limits, TecFrame *f,
                    const Crc *crc, const char **wrong) {
    Cursor c = {frame, frame + length, 0};
    memset(f, 0, sizeof *f);
    int is_frame = length >= 4 && !memcmp(frame, "TEC", 3);
    if (!is_frame) FAIL(TEC_DAMAGED, "the bytes are not a TEC frame");
    if (frame[3] != 1) FAIL(TEC_NEWER, "the frame has an unknown version of the format");
    c.at += 4;
    int64_t size = read_varint(&c);
    if (c.short_of) FAIL(TEC_DAMAGED, "the header is cut short");
    if (size > limits->header_bytes) FAIL(TEC_OVER_LIMIT, "a header of too many bytes");
    if (c.end - c.at < size + 4) FAIL(TEC_DAMAGED, "the header is cut short");
    Cursor sum = {c.at + size, c.at + size + 4, 0};
    if (read_number(&sum, 4) != crc_of(crc, frame, sum.at - 4 - frame))
        FAIL(TEC_CHANGED, "the header does not match its CRC32");
    c.end = c.at + size;
    f->header_bytes = c.end + 4 - frame;
    int flags = (int)read_number(&c, 1), array = (int)read_number(&c, 1);
    f->axes = array & 3;
    f->dtype = array >> 2 & 7;
    f->big_endian = array >> 5 & 1;
    f->column_major = array >> 6 & 1;
    if (flags & ~7 || f->dtype > FLOAT64 || array & 128)
        FAIL(TEC_NEWER, "the header has unknown features");
    f->model = (int)read_number(&c, 1);
    int64_t name = f->model ? 0 : (int64_t)read_number(&c, 1);
    if (c.end - c.at < name + 8) FAIL(TEC_DAMAGED, "the header is cut short");
    for (int64_t i = 0; i < name; i++)
        if (c.at[i] > 127) FAIL(TEC_DAMAGED, "the header has a model's name that is not ASCII");
    memcpy(f->model_name, c.at, (size_t)name);
    memcpy(f->weights, c.at + name, 8);
    c.at += name + 8;
    f->quality = (int)read_number(&c, 2);
    if (f->quality < 4096 || f->quality > 8 * 4096)
        FAIL(TEC_DAMAGED, "the header has a quality that cannot be");
    int status = read_bands(&c, f, wrong);
    if (!status) status = read_shape(&c, f, limits, wrong);
    if (!status) status = read_units(&c, f, flags, wrong);
    if (!status && flags & HAS_BOUNDS) status = read_bounds(&c, f, frame, wrong);
    if (status) return status;
    if (c.short_of) FAIL(TEC_DAMAGED, "the header is cut short");
    f->table_at = c.at - frame;
    return check_table(c, f, limits, wrong);
}

int tec_describe(const uint8_t *frame, int64_t length, const TecLimits *limits, TecFrame *f,
                 const char **wrong) {
    Crc crc;
    crc_begin(&crc);
    *wrong = "";
    return describe(frame, length, limits ? limits : &usual, f, &crc, wrong);
}

/* ---- the chunk */

typedef struct {
    const uint8_t *at;
    int64_t length;
} Bytes;

/* A frame that is being decoded. */
typedef struct {
    TecFrame f;
    const uint8_t *frame;
    Bytes single[KINDS]; /* the sections of which there is one */
    const uint8_t *latents;
    Cursor rows;     /* of the latents that are left, in the section table */
    int64_t left;    /* how many these are */
    Mask mask;       /* without labels if there is none */
    int64_t *slots;  /* of each date: its place in the output, or -1; null: all dates, in order */
    int64_t *places; /* of the bands that the model codes, then of the bounded ones */
    int64_t free;    /* how many bands the model codes */
    int32_t *dn;
    Units units;
    uint8_t *samples;
} Job;

/* Check the bytes of all sections, and find them. */
static int find_sections(Job *job, int64_t length, const Crc *crc, const char **wrong) {
    static const char *const changed[KINDS] = {
        0, "the mask section does not match its CRC32", "the exact section does not match its CRC32",
        "a latents section does not match its CRC32",
        "the bound_map section does not match its CRC32",
        "the bound section does not match its CRC32", "the points section does not match its CRC32"};
    const TecFrame *f = &job->f;
    if (length < f->total_bytes) FAIL(TEC_DAMAGED, "the frame is cut short");
    if (length > f->total_bytes) FAIL(TEC_DAMAGED, "the frame is followed by foreign bytes");
    Cursor c = {job->frame + f->table_at, job->frame + f->header_bytes - 4, 0};
    const uint8_t *at = job->frame + f->header_bytes;
    int64_t count;
    for (int kind = 0; c.at < c.end;) {
        read_group(&c, &kind, &count, wrong);
        if (kind == LATENTS) job->latents = at, job->rows = c, job->left = count;
        for (int64_t i = 0; i < count; i++) {
            int64_t size = read_varint(&c);
            uint32_t expected = (uint32_t)read_number(&c, 4);
            if (kind == LATENTS) read_number(&c, 4);
            if (crc_of(crc, at, size) != expected)
                FAIL(TEC_CHANGED, kind < KINDS ? changed[kind] : "a section does not match its CRC32");
            if (kind < KINDS) job->single[kind] = (Bytes){at, size};
            at += size;
        }
    }
    return TEC_OK;
}

/* Write the DN of one band of a tile of a date to the output. */
static void place(Job *job, const int32_t *dn, int64_t date, int64_t band, int64_t y, int64_t x,
                  int64_t height, int64_t width) {
    const int64_t *shape = job->f.shape;
    int64_t at = ((slot_of(job->slots, date) * shape[1] + band) * shape[2] + y) * shape[3] + x;
    int size = size_of(job->f.dtype);
    for (int64_t row = 0; row < height; row++, at += shape[3], dn += width)
        tec_units_convert(&job->units, dn, width, job->samples + at * size);
}

/* Whether the model codes a sample of a date in a tile. */
static int is_coded(const Job *job, int64_t date, int64_t y, int64_t x, int64_t height,
                    int64_t width) {
    const int64_t *shape = job->f.shape;
    if (!job->mask.labels) return 1;
    for (int64_t i = 0; i < job->free; i++) {
        const uint8_t *labels = job->mask.labels +
            ((date * shape[1] + job->places[i]) * shape[2] + y) * shape[3] + x;
        for (int64_t row = 0; row < height; row++, labels += shape[3])
            if (memchr(labels, 0, (size_t)width)) return 1;
    }
    return 0;
}

/* A tile that is being decoded. */
typedef struct {
    Job *job;
    int64_t y, x, height, width;
    const int64_t *dates; /* of the chunk, by date of the tile */
} Tile;

static int place_date(void *to, int number, const int32_t *dn) {
    const Tile *t = to;
    for (int64_t i = 0; i < t->job->free; i++)
        place(t->job, dn + i * t->height * t->width, t->dates[number], t->job->places[i], t->y, t->x, t->height,
              t->width);
    return TEC_OK;
}

/* Take the next section of latents. */
static TecLatents next_latents(Job *job) {
    TecLatents found = {.bytes = job->latents, .length = read_varint(&job->rows)};
    read_number(&job->rows, 4);
    found.checksum = (uint32_t)read_number(&job->rows, 4);
    job->latents += found.length;
    return found;
}

/* Decode the dates of a tile, one by one or as a series. */
static int decode_dates(Job *job, const TecModel *model, Tile *tile, const TecLatents *latents, int count,
                        const uint8_t *wanted, const char **wrong) {
    int status = TEC_OK, bands = (int)job->free, height = (int)tile->height, width = (int)tile->width;
    if (job->f.model != IMAGE_MODEL)
        status = tec_decode_series(model, job->f.model == FLEXIBLE_MODEL, latents, count, bands, height, width,
                                   job->f.quality, wanted, place_date, tile);
    for (int i = 0; i < count && !status && job->f.model == IMAGE_MODEL; i++) {
        uint32_t found = 0;
        if (!wanted[i]) continue;
        status = tec_tile_decode(model, latents[i].bytes, latents[i].length, bands, height, width,
                                 job->f.quality, job->dn, &found);
        if (!status && found != latents[i].checksum) status = TEC_CHANGED;
        if (!status) status = place_date(tile, i, job->dn);
    }
    if (status == TEC_CHANGED) FAIL(TEC_CHANGED, "a date was decoded to other latents than were encoded");
    if (status) FAIL(status, "a latents section is not what an encoder writes");
    return TEC_OK;
}

static int decode_tile(Job *job, const TecModel *model, Tile *tile, const char **wrong) {
    int64_t most = job->f.shape[0];
    TecLatents *latents = malloc((size_t)most * sizeof *latents);
    int64_t *dates = malloc((size_t)most * sizeof *dates);
    uint8_t *wanted = malloc((size_t)most);
    int count = 0, status = TEC_OK;
    if (!latents || !dates || !wanted) status = TEC_NO_MEMORY, *wrong = "no memory for a list of dates";
    for (int64_t date = 0; date < most && !status; date++) {
        if (!is_coded(job, date, tile->y, tile->x, tile->height, tile->width)) continue;
        if (!job->left--) {
            status = TEC_DAMAGED, *wrong = "the frame has too few sections of latents for its mask";
            break;
        }
        latents[count] = next_latents(job), dates[count] = date;
        wanted[count++] = slot_of(job->slots, date) >= 0;
    }
    tile->dates = dates;
    if (!status && count) status = decode_dates(job, model, tile, latents, count, wanted, wrong);
    free(latents), free(dates), free(wanted);
    return status;
}

static int64_t step_of(int64_t length) {
    int64_t parts = (length + TILE - 1) / TILE;
    return 8 * ((length + 8 * parts - 1) / (8 * parts));
}

static int decode_tiles(Job *job, const TecModel *model, const char **wrong) {
    int64_t height = job->f.shape[2], width = job->f.shape[3];
    int64_t rows = step_of(height), columns = step_of(width);
    if (job->f.section_count && (job->f.model < IMAGE_MODEL || job->f.model > FLEXIBLE_MODEL))
        FAIL(TEC_OTHER_MODEL, "the frame was coded by a model that this decoder does not have");
    if (job->f.section_count && !model) FAIL(TEC_BAD_ARGUMENT, "the frame needs a model");
    if (job->free) {
        int64_t largest = (rows < height ? rows : height) * (columns < width ? columns : width);
        if (!job->f.section_count || job->free > MOST_BANDS) largest = 0; /* nothing will be decoded */
        job->dn = malloc((size_t)(largest * job->free) * sizeof *job->dn + 1);
        if (!job->dn) FAIL(TEC_NO_MEMORY, "no memory for a tile");
    }
    if (job->free > MOST_BANDS && job->f.section_count)
        FAIL(TEC_DAMAGED, "the model takes no more than 31 bands");
    for (int64_t y = 0; job->free && y < height; y += rows)
        for (int64_t x = 0; x < width; x += columns) {
            Tile tile = {.job = job, .y = y, .x = x};
            tile.height = height - y < rows ? height - y : rows;
            tile.width = width - x < columns ? width - x : columns;
            int status = decode_tile(job, model, &tile, wrong);
            if (status) return status;
        }
    if (job->left) FAIL(TEC_DAMAGED, "the frame has more sections of latents than its mask asks for");
    return TEC_OK;
}

/* Find kind and bound of each band. */
static void bounds_of(const Job *job, uint8_t *kinds, int32_t *bounds) {
    const TecFrame *f = &job->f;
    const uint8_t *bound = job->frame + f->bounds_at, *index = job->frame + f->indices_at;
    for (int64_t i = 0; i < f->shape[1]; i++, bound += 2) {
        bounds[i] = bound[0] | bound[1] << 8;
        kinds[i] = bounds[i] == NO_BOUND ? TEC_FREE : TEC_ONE_BOUND;
    }
    for (int i = 0; i < f->index_count; i++, index += INDEX_BYTES)
        kinds[index[0]] = kinds[index[1]] = TEC_BLOCK_BOUNDS;
}

/* Decode the bands of the bound layer. */
static int decode_bounded(Job *job, const char **wrong) {
    const TecFrame *f = &job->f;
    const Bytes *layer = &job->single[BOUND], *map = &job->single[BOUND_MAP];
    if (!layer->at != !f->bounded_count || !map->at != !f->index_count)
        FAIL(TEC_DAMAGED, "the frame has bounds without a bound layer, or the reverse");
    if (!f->bounded_count) return TEC_OK;
    const int64_t *shape = f->shape, plane = shape[2] * shape[3];
    int32_t *dn = malloc((size_t)(shape[0] * shape[1] * plane) * sizeof *dn);
    int32_t *bounds = malloc((size_t)shape[1] * sizeof *bounds);
    uint8_t *kinds = malloc((size_t)shape[1]);
    int status = TEC_NO_MEMORY;
    if (dn && bounds && kinds) {
        bounds_of(job, kinds, bounds);
        status = tec_bound_decode(layer->at, layer->length, map->at, map->length, shape[0],
                                  shape[1], shape[2], shape[3], job->mask.labels, kinds, bounds, dn);
    }
    for (int64_t date = 0; !status && date < shape[0]; date++)
        for (int64_t i = job->free; i < shape[1] && slot_of(job->slots, date) >= 0; i++) {
            int64_t band = job->places[i];
            const int32_t *from = dn + (date * shape[1] + band) * plane;
            place(job, from, date, band, 0, 0, shape[2], shape[3]);
        }
    free(dn);
    free(bounds);
    free(kinds);
    if (status) FAIL(status, "the bound layer cannot be read");
    return TEC_OK;
}

static int prepare(Job *job, const int64_t *dates, int64_t date_count, const char **wrong) {
    const TecFrame *f = &job->f;
    job->places = malloc((size_t)f->shape[1] * sizeof *job->places);
    if (dates) job->slots = malloc((size_t)f->shape[0] * sizeof *job->slots);
    if (!job->places || (dates && !job->slots)) FAIL(TEC_NO_MEMORY, "no memory for a list of dates");
    for (int64_t i = 0; dates && i < f->shape[0]; i++) job->slots[i] = -1;
    for (int64_t i = date_count; dates && i--;) { /* backwards, so that the first place stays */
        if (dates[i] < 0 || dates[i] >= f->shape[0])
            FAIL(TEC_BAD_ARGUMENT, "the chunk does not have such a date");
        job->slots[dates[i]] = i;
    }
    int64_t held = f->shape[1] - f->bounded_count;
    for (int64_t i = 0; i < f->shape[1]; i++)
        job->places[tec_is_bounded(f, job->frame, i) ? held++ : job->free++] = i;
    job->units = (Units){.dtype = f->dtype, .plain = f->scale == 1 && f->offset == 0,
                         .scale = f->scale, .offset = f->offset, .count = f->nodata_count};
    memcpy(job->units.nodata, f->nodata, sizeof f->nodata);
    if (!tec_units_prepare(&job->units)) FAIL(TEC_DAMAGED, "nothing is left beside nodata");
    return TEC_OK;
}

static int decode(Job *job, const TecModel *model, const TecLimits *limits, const int64_t *dates,
                  int64_t date_count, const char **wrong) {
    const TecFrame *f = &job->f;
    const Bytes *single = job->single;
    int size = size_of(f->dtype), status = prepare(job, dates, date_count, wrong);
    if (status) return status;
    if (single[EXACT].at && !single[MASK].at) FAIL(TEC_DAMAGED, "the frame has exact values without a mask");
    if (single[MASK].at)
        status = tec_mask_read(single[MASK].at, single[MASK].length, single[EXACT].at,
                               single[EXACT].length, f->shape, size, limits->mask_bytes,
                               &job->mask, wrong);
    if (!status) status = decode_tiles(job, model, wrong);
    if (!status) status = decode_bounded(job, wrong);
    if (status) return status;
    if (job->mask.labels) tec_mask_restore(&job->mask, f->shape, size, job->slots, job->samples);
    if (single[POINTS].at)
        status = tec_points_restore(single[POINTS].at, single[POINTS].length, f->shape, size,
                                    job->slots, job->samples);
    if (status) FAIL(status, "the points section cannot be read");
    int64_t bytes = f->shape[1] * f->shape[2] * f->shape[3] * size;
    for (int64_t i = 0; dates && i < date_count; i++) {
        int64_t first = job->slots[dates[i]];
        if (first != i) memcpy(job->samples + i * bytes, job->samples + first * bytes, (size_t)bytes);
    }
    return TEC_OK;
}

int tec_decode(const uint8_t *frame, int64_t length, const TecLimits *limits,
               const TecModel *model, const int64_t *dates, int64_t date_count, void *samples,
               int64_t size, const char **wrong) {
    Crc crc;
    Job job = {.frame = frame, .samples = samples};
    crc_begin(&crc);
    *wrong = "";
    limits = limits ? limits : &usual;
    int status = describe(frame, length, limits, &job.f, &crc, wrong);
    if (!status) status = find_sections(&job, length, &crc, wrong);
    if (status) return status;
    int64_t bytes = job.f.shape[1] * job.f.shape[2] * job.f.shape[3] * size_of(job.f.dtype);
    if (date_count < 0 || size < 0 || size / bytes != (dates ? date_count : job.f.shape[0]) ||
        size % bytes)
        FAIL(TEC_BAD_ARGUMENT, "the buffer does not have the size of the samples");
    status = decode(&job, model, limits, dates, date_count, wrong);
    tec_mask_free(&job.mask);
    free(job.slots);
    free(job.places);
    free(job.dn);
    return status;
}
