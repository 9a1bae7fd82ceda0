/* Reads a weights file of tec-s2: the tensors of a safetensors file, checked and laid out.
 *
 * Such a file has the length of its header (u64, little-endian), the header, then the data. The
 * header is JSON: an object of tensors by name, each with dtype, shape and data_offsets. The reader
 * takes this subset alone: no escapes in strings, whole numbers, and under "__metadata__" strings. */
#include <stdlib.h>
#include <string.h>

#include "tile.h"

#define TOTAL_BITS 16 /* a table's frequencies sum to 2^16 */
#define MOST_NAME 64

enum { F64, I32, I16, I8, U8, DTYPES };
static const char *const dtype_names[DTYPES] = {"F64", "I32", "I16", "I8", "U8"};
static const int dtype_sizes[DTYPES] = {8, 4, 2, 1, 1};

enum {
    CONTEXT_FIRST, CONTEXT_FIRST_BIAS, CONTEXT_SECOND, CONTEXT_SECOND_BIAS, CONTEXT_LAST,
    CONTEXT_LAST_BIAS, CONTEXT_MEAN, FREQUENCY_TABLES, TOWARDS_ZERO, USUAL,
    OVERLAP, DCT = OVERLAP + 2, OVERLAP_BACK = DCT + 2, DCT_BACK = OVERLAP_BACK + 2, GAINS = DCT_BACK + 2,
    TENSORS = GAINS + 3,
};

static const struct {
    const char *name;
    int dtype, rows, columns; /* one row: a shape of one number */
} tensors[TENSORS] = {
    [CONTEXT_FIRST] = {"context.first", I8, INPUTS, HIDDEN},
    [CONTEXT_FIRST_BIAS] = {"context.first_bias", I32, 1, HIDDEN},
    [CONTEXT_SECOND] = {"context.second", I8, HIDDEN, HIDDEN},
    [CONTEXT_SECOND_BIAS] = {"context.second_bias", I32, 1, HIDDEN},
    [CONTEXT_LAST] = {"context.last", I8, 1, HIDDEN},
    [CONTEXT_LAST_BIAS] = {"context.last_bias", I32, 1, 1},
    [CONTEXT_MEAN] = {"context.mean", I16, 4, MOST_BANDS},
    [FREQUENCY_TABLES] = {"frequencies", I32, TABLES, SYMBOLS},
    [TOWARDS_ZERO] = {"towards_zero", U8, INDEXES, 2},
    [USUAL] = {"usual_bases", I32, USUAL_BASES * USUAL_BANDS, USUAL_BANDS},
    [OVERLAP] = {"overlap.16", F64, 16, 16},
    [OVERLAP + 1] = {"overlap.8", F64, 8, 8},
    [DCT] = {"dct.16", F64, 16, 16},
    [DCT + 1] = {"dct.8", F64, 8, 8},
    [OVERLAP_BACK] = {"overlap_back.16", I32, 16, 16},
    [OVERLAP_BACK + 1] = {"overlap_back.8", I32, 8, 8},
    [DCT_BACK] = {"dct_back.16", I32, 16, 16},
    [DCT_BACK + 1] = {"dct_back.8", I32, 8, 8},
    [GAINS] = {"gain.16", I32, GAIN_FACTORS, 16},
    [GAINS + 1] = {"gain.8.repeated", I32, GAIN_FACTORS, 8},
    [GAINS + 2] = {"gain.8.bilinear", I32, GAIN_FACTORS, 8},
};

/* ---- the header's JSON */

typedef struct {
    const uint8_t *at, *end;
} Text;

static void skip_space(Text *t) {
    while (t->at < t->end && (*t->at == ' ' || *t->at == '\t' || *t->at == '\n' || *t->at == '\r')) t->at++;
}

/* Whether this character follows; it is read. */
static int follows(Text *t, char character) {
    skip_space(t);
    if (t->at >= t->end || *t->at != (uint8_t)character) return 0;
    t->at++;
    return 1;
}

/* Read a string without its quotes, cut to MOST_NAME - 1 characters: as long as that, it is no name. */
static int read_string(Text *t, char out[MOST_NAME]) {
    int count = 0;
    if (!follows(t, '"')) return 0;
    for (; t->at < t->end && *t->at != '"'; t->at++) {
        if (*t->at == '\\' || *t->at < 0x20) return 0;
        if (count < MOST_NAME - 1) out[count++] = (char)*t->at;
    }
    out[count] = 0;
    return follows(t, '"');
}

static int read_number(Text *t, uint64_t *out) {
    skip_space(t);
    const uint8_t *start = t->at;
    for (*out = 0; t->at < t->end && *t->at >= '0' && *t->at <= '9'; t->at++) {
        if (*out > (uint64_t)1 << 40) return 0;
        *out = *out * 10 + (uint64_t)(*t->at - '0');
    }
    return t->at > start;
}

/* Read a list of at most two numbers, of which there are `count`. */
static int read_pair(Text *t, uint64_t out[2], int *count) {
    if (!follows(t, '[')) return 0;
    for (*count = 0; *count < 2;) {
        if (!read_number(t, out + (*count)++)) return 0;
        if (!follows(t, ',')) break;
    }
    return follows(t, ']');
}

static int skip_metadata(Text *t) {
    char text[MOST_NAME];
    if (!follows(t, '{')) return 0;
    if (follows(t, '}')) return 1;
    do
        if (!read_string(t, text) || !follows(t, ':') || !read_string(t, text)) return 0;
    while (follows(t, ','));
    return follows(t, '}');
}

/* Read what is said of a tensor; 0 unless it is what the tensor should be. */
static int read_tensor(Text *t, int number, uint64_t length, uint64_t *offset) {
    int seen = 0, count;
    if (!follows(t, '{')) return 0;
    do {
        char key[MOST_NAME], text[MOST_NAME];
        uint64_t pair[2];
        int rows = tensors[number].rows, columns = tensors[number].columns;
        if (!read_string(t, key) || !follows(t, ':')) return 0;
        if (!strcmp(key, "dtype")) {
            if (!read_string(t, text) || strcmp(text, dtype_names[tensors[number].dtype])) return 0;
            seen |= 1;
        } else if (!strcmp(key, "shape")) {
            if (!read_pair(t, pair, &count)) return 0;
            if (rows > 1 ? count != 2 || pair[0] != (uint64_t)rows || pair[1] != (uint64_t)columns
                         : count != 1 || pair[0] != (uint64_t)columns)
                return 0;
            seen |= 2;
        } else if (!strcmp(key, "data_offsets")) {
            uint64_t size = (uint64_t)rows * (uint64_t)columns * (uint64_t)dtype_sizes[tensors[number].dtype];
            if (!read_pair(t, pair, &count) || count != 2) return 0;
            if (pair[0] > pair[1] || pair[1] > length || pair[1] - pair[0] != size) return 0;
            *offset = pair[0];
            seen |= 4;
        } else return 0;
    } while (follows(t, ','));
    return seen == 7 && follows(t, '}');
}

/* Find all tensors: data[number] points to the bytes of each. */
static int find_tensors(const uint8_t *file, int64_t length, const uint8_t *data[TENSORS]) {
    if (length < 8) return TEC_DAMAGED;
    uint64_t header = 0, rest = (uint64_t)length - 8;
    for (int i = 7; i >= 0; i--) header = header << 8 | file[i];
    if (header > rest) return TEC_DAMAGED;
    rest -= header;
    Text text = {file + 8, file + 8 + header};
    int found = 0;
    for (int i = 0; i < TENSORS; i++) data[i] = 0;
    if (!follows(&text, '{')) return TEC_DAMAGED;
    do {
        char name[MOST_NAME];
        uint64_t offset = 0;
        int number = 0;
        if (!read_string(&text, name) || !follows(&text, ':')) return TEC_DAMAGED;
        if (!strcmp(name, "__metadata__")) {
            if (!skip_metadata(&text)) return TEC_DAMAGED;
            continue;
        }
        while (number < TENSORS && strcmp(name, tensors[number].name)) number++;
        if (number == TENSORS || data[number]) return TEC_DAMAGED;
        if (!read_tensor(&text, number, rest, &offset)) return TEC_DAMAGED;
        data[number] = file + 8 + header + offset;
        found++;
    } while (follows(&text, ','));
    if (!follows(&text, '}')) return TEC_DAMAGED;
    skip_space(&text);
    return found == TENSORS && text.at == text.end ? TEC_OK : TEC_DAMAGED;
}

/* ---- numbers */

static uint64_t read_bytes(const uint8_t *at, int count) {
    uint64_t bits = 0;
    for (int i = count - 1; i >= 0; i--) bits = bits << 8 | at[i];
    return bits;
}

static double real_at(const uint8_t *data, int i) {
    uint64_t bits = read_bytes(data + 8 * i, 8);
    double out;
    memcpy(&out, &bits, 8);
    return out;
}

static int32_t whole_at(const uint8_t *const *data, int number, int i) {
    int size = dtype_sizes[tensors[number].dtype], spare = 64 - 8 * size;
    uint64_t bits = read_bytes(data[number] + size * i, size);
    if (tensors[number].dtype == U8) return (int32_t)bits;
    return (int32_t)((int64_t)(bits << spare) >> spare);
}

static int64_t size_of(int64_t x) { return x < 0 ? -x : x; }

/* ---- checks and layout */

/* Not NaN, and small enough that an encoder's sums of squares stay far below infinity. */
static int is_usable(double x) { return x >= -16 && x <= 16; }

/* 2^8 log2(2^16 / frequency), rounded. */
static int32_t cost_of(uint32_t frequency) {
    uint64_t x = frequency;
    int bits = 0, steps = 12;
    while (x >> (bits + 1)) bits++;
    x <<= 31 - bits;
    uint32_t log = (uint32_t)bits;
    for (int i = 0; i < steps; i++) { /* squares double the logarithm */
        x = x * x >> 31;
        log <<= 1;
        if (x >> 32) x >>= 1, log |= 1;
    }
    return (int32_t)((((uint32_t)TOTAL_BITS << steps) - log + 8) >> (steps - 8));
}

static int lay_out_context(TecModel *m, const uint8_t *const *data) {
    Context *c = &m->context;
    const int32_t most = 1 << 24;
    for (int i = 0; i < INPUTS * HIDDEN; i++)
        c->first[i / HIDDEN][i % HIDDEN] = (int16_t)whole_at(data, CONTEXT_FIRST, i);
    for (int i = 0; i < HIDDEN * HIDDEN; i++)
        c->second[i / HIDDEN][i % HIDDEN] = (int16_t)whole_at(data, CONTEXT_SECOND, i);
    for (int i = 0; i < HIDDEN; i++) {
        c->last[i] = (int16_t)whole_at(data, CONTEXT_LAST, i);
        c->first_bias[i] = whole_at(data, CONTEXT_FIRST_BIAS, i);
        c->second_bias[i] = whole_at(data, CONTEXT_SECOND_BIAS, i);
        if (size_of(c->first_bias[i]) > most || size_of(c->second_bias[i]) > most) return 0;
    }
    c->last_bias = whole_at(data, CONTEXT_LAST_BIAS, 0);
    if (size_of(c->last_bias) > most) return 0;
    c->shifts[0] = c->shifts[1] = 6, c->shifts[2] = 10;
    for (int i = 0; i < 4 * MOST_BANDS; i++) {
        c->mean[i / MOST_BANDS][i % MOST_BANDS] = (int16_t)whole_at(data, CONTEXT_MEAN, i);
        if (size_of(c->mean[i / MOST_BANDS][i % MOST_BANDS]) > 1 << 12) return 0;
    }
    for (int t = 0; t < TABLES; t++) {
        uint32_t sum = 0;
        for (int i = 0; i < SYMBOLS; i++) {
            int32_t frequency = whole_at(data, FREQUENCY_TABLES, t * SYMBOLS + i);
            if (frequency < 1 || frequency > 1 << TOTAL_BITS) return 0;
            c->starts[t][i] = sum;
            c->costs[t][i] = cost_of((uint32_t)frequency);
            sum += (uint32_t)frequency;
        }
        if (sum != 1u << TOTAL_BITS) return 0;
        c->starts[t][SYMBOLS] = sum;
    }
    for (int i = 0; i < 2 * INDEXES; i++)
        m->towards_zero[i / 2][i % 2] = (uint8_t)whole_at(data, TOWARDS_ZERO, i);
    return 1;
}

/* The transforms: rows of a cosine transform are even or odd, and what an overlap changes at one
 * side of a boundary it changes at the other with the opposite sign. Sums of rows are limited, so
 * that a synthesis of any coefficients stays exact. */
static int lay_out_transforms(TecModel *m, const uint8_t *const *data) {
    for (int level = 0; level < 2; level++) {
        int size = MOST_SIZE >> level, half = size / 2;
        for (int i = 0; i < size * size; i++) {
            int row = i / size, column = i % size;
            double dct = real_at(data[DCT + level], i), overlap = real_at(data[OVERLAP + level], i);
            if (!is_usable(dct) || !is_usable(overlap)) return 0;
            m->dct[level][row][column] = dct;
            m->dct_back[level][row][column] = whole_at(data, DCT_BACK + level, i);
            if (row >= half && column >= half) {
                int32_t back = whole_at(data, OVERLAP_BACK + level, i);
                m->overlap_back[level][row - half][column - half] = back - (row == column ? 1 << 14 : 0);
                m->overlap[level][row - half][column - half] = overlap - (row == column);
            }
        }
        for (int i = 0; i < size; i++) {
            double sum = 0, across = 0;
            for (int u = 0; u < size; u++) {
                double one = m->dct_back[level][u][i], other = m->dct_back[level][u][size - 1 - i];
                if (one != (u % 2 ? -other : other)) return 0;
                sum += one < 0 ? -one : one;
            }
            for (int j = 0; i < half && j < half; j++) {
                double one = m->overlap_back[level][i][j];
                across += one < 0 ? -one : one;
            }
            if (sum > 1 << 16 || across > 1 << 15) return 0;
        }
    }
    for (int kind = 0; kind < 3; kind++)
        for (int i = 0; i < tensors[GAINS + kind].rows * tensors[GAINS + kind].columns; i++) {
            int32_t gain = whole_at(data, GAINS + kind, i), columns = tensors[GAINS + kind].columns;
            if (gain < 1 << 11 || gain > 1 << 17) return 0;
            m->gains[kind][i / columns][i % columns] = gain;
        }
    return 1;
}

/* The usual bases: rotations, of as many bands as each has, and zeros. */
static int lay_out_bases(TecModel *m, const uint8_t *const *data) {
    for (int i = 0; i < USUAL_BASES * USUAL_BANDS * USUAL_BANDS; i++) {
        int32_t entry = whole_at(data, USUAL, i);
        if (size_of(entry) > 1 << FULL_BITS) return 0;
        m->usual[i / (USUAL_BANDS * USUAL_BANDS)][i / USUAL_BANDS % USUAL_BANDS][i % USUAL_BANDS] = entry;
    }
    for (int number = 0; number < USUAL_BASES; number++)
        for (int j = 0; j < USUAL_BANDS; j++)
            for (int k = 0; k <= j; k++) {
                int bands = tec_bands_of_usual[number];
                int64_t sum = j == k && j < bands ? -((int64_t)1 << (2 * FULL_BITS)) : 0;
                for (int i = 0; i < USUAL_BANDS; i++) sum += (int64_t)m->usual[number][i][j] * m->usual[number][i][k];
                if (size_of(sum) > (int64_t)1 << (FULL_BITS + 8)) return 0;
            }
    return 1;
}

static void order_frequencies(TecModel *m) {
    const int32_t one[CLASSES] = {1, 1, 1, 1, 1};
    int32_t planes[FREQUENCIES * 4];
    tec_planes(MOST_SIZE, one, planes);
    m->first[0] = 0;
    for (int f = 0; f < FREQUENCIES; f++) {
        const int32_t *p = planes + 4 * f;
        m->frequencies[f] = (Frequency){(uint8_t)p[0], (uint8_t)p[1], (uint8_t)p[2]};
        m->first[p[0] + 1] = f + 1;
    }
}

int tec_model_open(const uint8_t *file, int64_t length, TecModel **model) {
    const uint8_t *data[TENSORS];
    *model = 0;
    int status = find_tensors(file, length, data);
    if (status) return status;
    TecModel *m = calloc(1, sizeof *m);
    if (!m) return TEC_NO_MEMORY;
    order_frequencies(m);
    if (!lay_out_context(m, data) || !lay_out_transforms(m, data) || !lay_out_bases(m, data)) {
        free(m);
        return TEC_DAMAGED;
    }
    *model = m;
    return TEC_OK;
}

void tec_model_close(TecModel *model) { free(model); }
