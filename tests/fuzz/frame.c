/* Fuzzes tec_decode with frames that are given: frame_fuzz SECONDS SEED WEIGHTS FRAME...
 *
 *     gcc -g -O1 -std=c11 -ffp-contract=off -fwrapv -fsanitize=address,undefined \
 *         -fno-sanitize-recover=undefined -I tec_zarr/native -o frame_fuzz tests/fuzz/frame.c \
 *         $(ls tec_zarr/native/[!s]*.c) -lm
 *
 * First every truncation, and every byte changed: no such frame may decode. Then random changes
 * under checksums that hold: a frame may decode, and its dates one by one must be those of all. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "frame.h"

enum { MOST_FRAMES = 1000, LATENTS = 3, ROOM = 1 << 20 };

static const TecLimits limits = {1 << 18, 1 << 12, 1 << 10, 1 << 20, 1 << 30, 1 << 24};
static const uint8_t telling[8] = {0, 1, 4, 5, 127, 128, 254, 255};
static uint64_t state = 88172645463325252u;
static const TecModel *model;

static int64_t random_below(int64_t n) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return n > 0 ? (int64_t)(state >> 16) % n : 0;
}

static uint32_t crc32_of(const uint8_t *p, int64_t n) {
    uint32_t c = ~0u;
    for (; n; n--) {
        c ^= *p++;
        for (int k = 0; k < 8; k++) c = c >> 1 ^ (c & 1 ? 0xedb88320u : 0);
    }
    return ~c;
}

static void put_crc(uint8_t *to, const uint8_t *p, int64_t n) {
    uint32_t crc = crc32_of(p, n);
    for (int i = 0; i < 4; i++) to[i] = (uint8_t)(crc >> 8 * i);
}

/* Set the checksums of a changed frame, whose section table begins at `table`. */
static void seal(uint8_t *frame, int64_t length, int64_t table) {
    Cursor c = {frame + 4, frame + length, 0};
    int64_t size = read_varint(&c);
    if (c.short_of || c.end - c.at < size + 4) return;
    uint8_t *end = frame + (c.at - frame) + size, *payload = end + 4;
    Cursor t = {frame + (table < end - frame ? table : end - frame), end, 0};
    while (t.at < t.end) {
        int kind = (int)read_number(&t, 1);
        for (int64_t left = read_varint(&t); left && !t.short_of; left--) {
            int64_t bytes = read_varint(&t), there = frame + length - payload;
            uint8_t *row = frame + (t.at - frame);
            read_number(&t, kind == LATENTS ? 8 : 4);
            if (t.short_of) break;
            bytes = bytes < there ? bytes : there;
            put_crc(row, payload, bytes);
            payload += bytes;
        }
    }
    put_crc(end, frame, end - frame);
}

/* Decode from memory that ends with the frame, so that the sanitizer sees every byte too many. */
static int status_of(const uint8_t *bytes, int64_t length) {
    uint8_t *frame = malloc((size_t)length + !length);
    const char *wrong;
    TecFrame header;
    memcpy(frame, bytes, (size_t)length);
    int status = tec_describe(frame, length, &limits, &header, &wrong);
    if (!status) {
        int64_t dates = header.shape[0];
        int64_t size = header.shape[1] * header.shape[2] * header.shape[3] * size_of(header.dtype);
        uint8_t *all = malloc((size_t)(dates * size)), *some = malloc((size_t)(3 * size));
        int64_t wanted[3];
        for (int i = 0; i < 3; i++) wanted[i] = random_below(dates);
        status = tec_decode(frame, length, &limits, model, NULL, 0, all, dates * size, &wrong);
        int other = tec_decode(frame, length, &limits, model, wanted, 3, some, 3 * size, &wrong);
        for (int i = 0; !status && i < 3; i++)
            if (other || memcmp(some + i * size, all + wanted[i] * size, (size_t)size)) abort();
        free(all);
        free(some);
    }
    free(frame);
    return status;
}

static int64_t change(uint8_t *frame, int64_t length, int64_t table) {
    int64_t from = random_below(3) ? 0 : table, to = random_below(2) ? length : length / 2 + 1;
    int64_t at = from + random_below(to - from);
    if (at >= length) at = length - 1;
    switch (random_below(5)) {
    case 0: frame[at] = (uint8_t)random_below(256); return length;
    case 1: frame[at] ^= (uint8_t)(1 << random_below(8)); return length;
    case 2: frame[at] = telling[random_below(8)]; return length;
    case 3:
        if (length < 12) return length;
        memmove(frame + at, frame + at + 1, (size_t)(length - at - 1));
        return length - 1;
    default:
        if (length + 1 >= ROOM) return length;
        memmove(frame + at + 1, frame + at, (size_t)(length - at));
        return length + 1;
    }
}

static uint8_t *contents(const char *path, int64_t *length) {
    static uint8_t bytes[ROOM];
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    *length = (int64_t)fread(bytes, 1, ROOM, file);
    fclose(file);
    uint8_t *out = malloc((size_t)*length + 1);
    return memcpy(out, bytes, (size_t)*length);
}

int main(int count, char **arguments) {
    static uint8_t *frames[MOST_FRAMES], work[ROOM];
    static int64_t lengths[MOST_FRAMES], tables[MOST_FRAMES];
    int64_t length, unnoticed = 0, runs = 0, decoded = 0;
    TecModel *opened;
    int n = 0;
    if (count < 5 || count > MOST_FRAMES + 4) return 2;
    state ^= (uint64_t)atoll(arguments[2]) * 0x9e3779b97f4a7c15u;
    uint8_t *weights = contents(arguments[3], &length);
    if (!weights || tec_model_open(weights, length, &opened)) return 2;
    model = opened;
    for (int i = 4; i < count; i++, n++) {
        TecFrame header;
        const char *wrong;
        frames[n] = contents(arguments[i], &lengths[n]);
        if (!frames[n] || tec_describe(frames[n], lengths[n], &limits, &header, &wrong) ||
            status_of(frames[n], lengths[n])) {
            printf("%s does not decode\n", arguments[i]);
            return 2;
        }
        tables[n] = header.table_at;
        for (int64_t at = 0; at < lengths[n]; at++) {
            unnoticed += !status_of(frames[n], at);
            uint8_t before = frames[n][at];
            frames[n][at] ^= (uint8_t)(1 + random_below(255));
            unnoticed += !status_of(frames[n], lengths[n]);
            frames[n][at] = before;
        }
    }
    for (time_t end = time(NULL) + atoi(arguments[1]); time(NULL) < end; runs++) {
        int64_t i = random_below(n);
        length = lengths[i];
        memcpy(work, frames[i], (size_t)length);
        for (int64_t changes = 1 + random_below(4); changes; changes--)
            length = change(work, length, tables[i]);
        seal(work, length, tables[i]);
        decoded += !status_of(work, length);
    }
    printf("%d frames, %lld changes unnoticed; %lld runs under checksums that hold, %lld decoded\n",
           n, (long long)unnoticed, (long long)runs, (long long)decoded);
    tec_model_close(opened);
    free(weights);
    while (n) free(frames[--n]);
    return unnoticed != 0;
}
