/* Repeats the calls of a recording of tests/core_calls.py with the core of a wheel.
 *
 *     wheel_check CALLS RESULTS */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "context.h"
#include "frame.h"
#include "grids.h"
#include "planes.h"
#include "tec.h"

enum { MOST = 20 };
enum { NUMBER, GIVEN, FILLED, CHANGED, MODEL, NULLS, SAME };

typedef struct {
    int64_t kind, value; /* the value is a number, or the length of `bytes` */
    void *bytes;
} Argument;

static void *at(const Argument *a) { return a->bytes; }
static int whole(const Argument *a) { return (int)a->value; }

/* Whether this processor has the kernel that TEC_NATIVE names. */
static int has_wanted_kernel(void) {
    const char *wanted = getenv("TEC_NATIVE"), *name;
    int here = 0;
    if (!wanted || !*wanted) return 1;
    for (int i = 0; (name = tec_kernel(i, &here)); i++)
        if (here && !strcmp(name, wanted)) return 1;
    return 0;
}

static int64_t call(const char *name, TecModel **model, const Argument *a) {
    if (!strcmp(name, "tec_model_open")) {
        if (*model) tec_model_close(*model);
        return tec_model_open(at(a), a->value, model);
    }
    if (!strcmp(name, "tec_tile_grids"))
        return tec_tile_grids(at(a), at(a + 1), whole(a + 2), whole(a + 3), whole(a + 4), whole(a + 5),
                              whole(a + 6), at(a + 7));
    if (!strcmp(name, "tec_tile_encode"))
        return tec_tile_encode(*model, at(a + 1), at(a + 2), at(a + 3), whole(a + 4), whole(a + 5),
                               whole(a + 6), whole(a + 7), at(a + 8), a[9].value, at(a + 10),
                               at(a + 11));
    if (!strcmp(name, "tec_series_encode"))
        return tec_series_encode(*model, at(a + 1), at(a + 2), at(a + 3), whole(a + 4), whole(a + 5),
                                 whole(a + 6), whole(a + 7), whole(a + 8), whole(a + 9), at(a + 10),
                                 at(a + 11), a[12].value, at(a + 13), at(a + 14), at(a + 15),
                                 at(a + 16));
    if (!strcmp(name, "tec_bound_encode"))
        return tec_bound_encode(at(a), a[1].value, a[2].value, a[3].value, a[4].value, at(a + 5),
                                at(a + 6), at(a + 7), at(a + 8), at(a + 9), at(a + 10), at(a + 11),
                                at(a + 12), at(a + 13), a[14].value, at(a + 15));
    if (!strcmp(name, "tec_grid_search"))
        return tec_grid_search(whole(a), whole(a + 1), whole(a + 2), whole(a + 3), whole(a + 4),
                               whole(a + 5), at(a + 6), at(a + 7), whole(a + 8), at(a + 9));
    fprintf(stderr, "no function %s\n", name);
    exit(2);
}

int main(int count, char **names) {
    if (count != 3) return 2;
    if (!has_wanted_kernel()) return 7;
    FILE *in = fopen(names[1], "rb"), *out = fopen(names[2], "wb");
    if (!in || !out) return 2;
    TecModel *model = NULL;
    char name[25] = {0};
    int64_t arguments;
    while (fread(name, 24, 1, in) == 1) {
        Argument a[MOST] = {0};
        if (fread(&arguments, sizeof arguments, 1, in) != 1 || arguments > MOST) return 2;
        for (int i = 0; i < arguments; i++) {
            if (fread(&a[i], 2 * sizeof(int64_t), 1, in) != 1) return 2;
            if (a[i].kind == SAME) {
                if (a[i].value < 0 || a[i].value >= i) return 2;
                a[i].bytes = a[a[i].value].bytes;
            }
            if (a[i].kind < GIVEN || a[i].kind > CHANGED) continue;
            size_t length = (size_t)a[i].value;
            if (!(a[i].bytes = calloc(length + 1, 1))) return 3;
            if (a[i].kind != FILLED && fread(a[i].bytes, 1, length, in) != length) return 2;
        }
        int64_t status = call(name, &model, a);
        fwrite(&status, sizeof status, 1, out);
        for (int i = 0; i < arguments; i++) {
            if (a[i].kind != FILLED && a[i].kind != CHANGED && a[i].kind != SAME) continue;
            int64_t length = a[a[i].kind == SAME ? a[i].value : i].value;
            uint32_t checksum = tec_crc32(a[i].bytes, length);
            fwrite(&checksum, sizeof checksum, 1, out);
        }
        for (int i = 0; i < arguments; i++)
            if (a[i].kind != SAME) free(a[i].bytes);
    }
    if (model) tec_model_close(model);
    return fclose(out) ? 2 : 0;
}
