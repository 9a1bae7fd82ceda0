/* Decodes and encodes what tests/test_wheels.py has put into a file, with the core of a wheel.
 *
 *     wheel_check WEIGHTS CASES RESULTS
 *
 * A case is five int32 (bands, height, width, quality in 1/4096, length of the section) and the
 * section. A result is the status, the checksum and the samples of the section, and the section
 * that encoding the samples makes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "context.h"
#include "tec.h"

static void *reserved(size_t bytes) {
    void *found = malloc(bytes ? bytes : 1);
    if (!found) {
        fprintf(stderr, "no memory\n");
        exit(1);
    }
    return found;
}

/* Whether this processor has the kernel that TEC_NATIVE names. */
static int has_wanted_kernel(void) {
    const char *wanted = getenv("TEC_NATIVE"), *name;
    int here = 0;
    if (!wanted || !*wanted) return 1;
    for (int i = 0; (name = tec_kernel(i, &here)); i++)
        if (here && !strcmp(name, wanted)) return 1;
    return 0;
}

int main(int count, char **names) {
    if (count != 4) return 2;
    if (!has_wanted_kernel()) return 7;
    FILE *in = fopen(names[1], "rb");
    if (!in || fseek(in, 0, SEEK_END)) return 2;
    long length = ftell(in);
    uint8_t *weights = reserved((size_t)length);
    rewind(in);
    if (fread(weights, 1, (size_t)length, in) != (size_t)length) return 2;
    fclose(in);
    TecModel *model = NULL;
    if (tec_model_open(weights, length, &model) != TEC_OK) return 3;
    free(weights);

    in = fopen(names[2], "rb");
    FILE *out = fopen(names[3], "wb");
    if (!in || !out) return 2;
    int32_t head[5];
    while (fread(head, sizeof head, 1, in) == 1) {
        size_t samples = (size_t)head[0] * head[1] * head[2];
        uint8_t *section = reserved((size_t)head[4]);
        if (fread(section, 1, (size_t)head[4], in) != (size_t)head[4]) return 2;
        int32_t *dn = reserved(samples * sizeof *dn), status;
        uint32_t checksum = 0;
        status = tec_tile_decode(model, section, head[4], head[0], head[1], head[2], head[3], dn,
                                 &checksum);
        fwrite(&status, sizeof status, 1, out);
        fwrite(&checksum, sizeof checksum, 1, out);
        if (status != TEC_OK) return 4;
        fwrite(dn, sizeof *dn, samples, out);

        TecGrid grids[31];
        status = tec_tile_grids(dn, NULL, 1, head[0], head[1], head[2], head[3], grids);
        if (status != TEC_OK) return 5;
        int64_t capacity = tec_tile_capacity(head[0], head[1], head[2]);
        uint8_t *made = reserved((size_t)capacity);
        int64_t size = tec_tile_encode(model, dn, NULL, grids, head[0], head[1], head[2], head[3],
                                       made, capacity, &checksum, NULL);
        if (size < 0) return 6;
        fwrite(&size, sizeof size, 1, out);
        fwrite(made, 1, (size_t)size, out);
        free(made);
        free(dn);
        free(section);
    }
    tec_model_close(model);
    return fclose(out) ? 2 : 0;
}
