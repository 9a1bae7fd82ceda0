/* The networks' walk over one tile, for one instruction set; included by s2.c. */

#ifdef AVX512
#define LANES 16
#define VECTOR __m512i
#define LOAD(p) _mm512_loadu_si512(p)
#define STORE(p, x) _mm512_storeu_si512(p, x)
#define EVERYWHERE(x) _mm512_set1_epi32(x)
#define ADD(x, y) _mm512_add_epi32(x, y)
#define TIMES(x, y) _mm512_mullo_epi32(x, y)
#define DOWN(x, bits) _mm512_srai_epi32(x, bits)
#define WITHIN(x, most) \
    _mm512_max_epi32(_mm512_min_epi32(x, EVERYWHERE(most)), EVERYWHERE(-(most)))
#define PAIRS(sum, x, y) _mm512_dpwssd_epi32(sum, x, y)
#define FLOATS __m512
#define TO_FLOATS(x) _mm512_cvtepi32_ps(x)
#define TO_WHOLE(x) _mm512_cvtps_epi32(x)
#define FLOORED(x) _mm512_roundscale_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)
#define EVERY_FLOAT(x) _mm512_set1_ps(x)
#define SUM_F(x, y) _mm512_add_ps(x, y)
#define TIMES_F(x, y) _mm512_mul_ps(x, y)
#define OVER_F(x, y) _mm512_div_ps(x, y)
#define SIZE_F(x) _mm512_abs_ps(x)
#define TRUNCATED(x) _mm512_cvttps_epi32(x)
#define LOAD_F(p) _mm512_loadu_ps(p)
#define STORE_F(p, x) _mm512_storeu_ps(p, x)
#define BYTES_F(p) TO_FLOATS(_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(p))))
#define BETWEEN_F(x, least, most) \
    _mm512_min_ps(_mm512_max_ps(x, EVERY_FLOAT(least)), EVERY_FLOAT(most))
#define STORE_BYTES(p, x) _mm_storeu_si128((void *)(p), _mm512_cvtepi32_epi8(x))
#define STORE_SHORTS(p, x) /* saturated */ \
    _mm256_storeu_si256((void *)(p), \
                        _mm512_cvtusepi32_epi16(_mm512_max_epi32(x, _mm512_setzero_si512())))
#else
#define LANES 8
#define VECTOR __m256i
#define LOAD(p) _mm256_loadu_si256((const void *)(p))
#define STORE(p, x) _mm256_storeu_si256((void *)(p), x)
#define EVERYWHERE(x) _mm256_set1_epi32(x)
#define ADD(x, y) _mm256_add_epi32(x, y)
#define TIMES(x, y) _mm256_mullo_epi32(x, y)
#define DOWN(x, bits) _mm256_srai_epi32(x, bits)
#define WITHIN(x, most) \
    _mm256_max_epi32(_mm256_min_epi32(x, EVERYWHERE(most)), EVERYWHERE(-(most)))
#define PAIRS(sum, x, y) _mm256_add_epi32(sum, _mm256_madd_epi16(x, y))
#define FLOATS __m256
#define TO_FLOATS(x) _mm256_cvtepi32_ps(x)
#define TO_WHOLE(x) _mm256_cvtps_epi32(x)
#define FLOORED(x) _mm256_floor_ps(x)
#define EVERY_FLOAT(x) _mm256_set1_ps(x)
#define SUM_F(x, y) _mm256_add_ps(x, y)
#define TIMES_F(x, y) _mm256_mul_ps(x, y)
#define OVER_F(x, y) _mm256_div_ps(x, y)
#define SIZE_F(x) _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x)
#define TRUNCATED(x) _mm256_cvttps_epi32(x)
#define LOAD_F(p) _mm256_loadu_ps(p)
#define STORE_F(p, x) _mm256_storeu_ps(p, x)
#define BYTES_F(p) TO_FLOATS(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)(p))))
#define BETWEEN_F(x, least, most) \
    _mm256_min_ps(_mm256_max_ps(x, EVERY_FLOAT(least)), EVERY_FLOAT(most))
#define STORE_BYTES(p, x) \
    _mm_storel_epi64((void *)(p), \
                     _mm_packus_epi16(_mm_packus_epi32(_mm256_castsi256_si128(x), \
                                                       _mm256_extracti128_si256(x, 1)), \
                                      _mm_setzero_si128()))
#define STORE_SHORTS(p, x) /* saturated */ \
    _mm_storeu_si128((void *)(p), _mm_packus_epi32(_mm256_castsi256_si128(x), \
                                                   _mm256_extracti128_si256(x, 1)))
#endif

#ifdef AVX512
static inline __attribute__((always_inline)) void
NAME(sums_of)(const layer *l, const uint8_t *const *rows, const ptrdiff_t *taps, int first,
              const int vectors, int32_t sums[ROWS][COLUMNS])
{
    const ptrdiff_t stride = (ptrdiff_t)l->outputs * 4;
    const int8_t *w = l->weight + (ptrdiff_t)first * 4;
    __m512i acc[ROWS][4];
    for (int v = 0; v < vectors; v++) {
        const __m512i start = _mm512_loadu_si512(l->start + first + 16 * v);
        for (int r = 0; r < ROWS; r++) acc[r][v] = start;
    }
    for (int t = 0; t < l->taps; t++)
        for (int k = 0; k < l->inputs; k += 4, w += stride) {
            __m512i weights[4];
            for (int v = 0; v < vectors; v++) weights[v] = _mm512_loadu_si512(w + 64 * v);
#pragma GCC unroll 6
            for (int r = 0; r < ROWS; r++) {
                int32_t four;
                memcpy(&four, rows[r] + taps[t] + k, 4);
                const __m512i a = _mm512_set1_epi32(four);
                for (int v = 0; v < vectors; v++)
                    acc[r][v] = _mm512_dpbusd_epi32(acc[r][v], a, weights[v]);
            }
        }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < vectors; v++) _mm512_storeu_si512(sums[r] + 16 * v, acc[r][v]);
}
#endif

/* Sums (ROWS, columns) of outputs from `first` on, for rows of bytes and the taps beside them. None
 * reaches 2^24 (checked where weights are read), so that their order is of no matter. */
static void NAME(sums)(const layer *l, const uint8_t *const *rows, const ptrdiff_t *taps,
                       int first, int columns, int32_t sums[ROWS][COLUMNS])
{
#ifdef AVX512
    switch (columns / 16) {
    case 1: NAME(sums_of)(l, rows, taps, first, 1, sums); break;
    case 2: NAME(sums_of)(l, rows, taps, first, 2, sums); break;
    case 3: NAME(sums_of)(l, rows, taps, first, 3, sums); break;
    default: NAME(sums_of)(l, rows, taps, first, 4, sums);
    }
#else
    const ptrdiff_t stride = (ptrdiff_t)l->outputs * 4;
    for (int n = 0; n < columns; n += 8) {
        const int8_t *w = l->weight + (ptrdiff_t)(first + n) * 4;
        /* Two halves of the sum of an output, side by side. */
        __m256i acc[ROWS][2];
        for (int r = 0; r < ROWS; r++) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
        for (int t = 0; t < l->taps; t++)
            for (int k = 0; k < l->inputs; k += 4, w += stride) {
                const __m256i w0 = _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)w));
                const __m256i w1 = _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)(w + 16)));
#pragma GCC unroll 6
                for (int r = 0; r < ROWS; r++) {
                    int32_t four;
                    memcpy(&four, rows[r] + taps[t] + k, 4);
                    const __m256i a =
                        _mm256_broadcastq_epi64(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(four)));
                    acc[r][0] = _mm256_add_epi32(acc[r][0], _mm256_madd_epi16(a, w0));
                    acc[r][1] = _mm256_add_epi32(acc[r][1], _mm256_madd_epi16(a, w1));
                }
            }
        for (int r = 0; r < ROWS; r++) {
            const __m256i both = _mm256_permute4x64_epi64(
                _mm256_hadd_epi32(acc[r][0], acc[r][1]), _MM_SHUFFLE(3, 1, 2, 0));
            STORE(sums[r] + n, ADD(both, LOAD(l->start + first + n)));
        }
    }
#endif
}

/* Rows of a block of ROWS, the last one again where there are fewer. */
static inline int NAME(rows_of)(const uint8_t *grid, size_t cell, const int32_t *cells, int from,
                                int count, const uint8_t **rows)
{
    const int some = count - from < ROWS ? count - from : ROWS;
    for (int r = 0; r < ROWS; r++) {
        const int row = from + (r < some ? r : some - 1);
        rows[r] = grid + (cells ? cells[row] : row) * cell;
    }
    return some;
}

/* A hidden layer at `count` cells of a grid (rows of `grid` without `cells`): bytes (count,
 * outputs), row by row, or in the cells `to`. `extra` (outputs), or `more` activations (count,
 * outputs), in sixteenths, are added before rounding. */
static void NAME(hidden)(const layer *l, const uint8_t *grid, size_t cell, const int32_t *cells,
                         const ptrdiff_t *taps, int count, const float *extra, const uint8_t *more,
                         uint8_t *out, const int32_t *to)
{
    int32_t sums[ROWS][COLUMNS];
    const uint8_t *rows[ROWS];
    for (int p = 0; p < count; p += ROWS) {
        const int some = NAME(rows_of)(grid, cell, cells, p, count, rows);
        for (int first = 0; first < l->outputs; first += COLUMNS) {
            const int columns = l->outputs - first < COLUMNS ? l->outputs - first : COLUMNS;
            const float *scale = l->scale + first, *shift = l->shift + first;
            NAME(sums)(l, rows, taps, first, columns, sums);
            for (int r = 0; r < some; r++) {
                const size_t row = p + r, target = to ? (size_t)to[row] : row;
                uint8_t *o = out + target * l->outputs + first;
                const uint8_t *m = more ? more + row * l->outputs + first : NULL;
                for (int n = 0; n < columns; n += LANES) {
                    FLOATS v = TIMES_F(TO_FLOATS(LOAD(sums[r] + n)), LOAD_F(scale + n));
                    v = SUM_F(v, LOAD_F(shift + n));
                    if (extra) v = SUM_F(v, LOAD_F(extra + first + n));
                    if (m) v = SUM_F(v, BYTES_F(m + n));
                    STORE_BYTES(o + n, TRUNCATED(BETWEEN_F(v, 0.0f, 255.0f)));
                }
            }
        }
    }
}

/* Means and indexes of tables of a pass: those of a head at rows (places, inputs) of bytes, or
 * without one zero and what the prior says. Means gain `linear` (places, 4). All sums are exact in
 * float32 (checked where the networks are handed over) but for that one. */
static void NAME(parameters)(const tile *t, int group, const layer *l, const uint8_t *input,
                             const int32_t *linear)
{
    const int size = SIZES[group], outputs = l ? l->outputs : 0;
    const float *prior = t->prior + STARTS[group];
    const ptrdiff_t here = 0;
    int32_t sums[ROWS][COLUMNS];
    const uint8_t *rows[ROWS];
    float values[ROWS][CHANNELS] = {{0}};
    for (int p = 0; p < t->some.count; p += ROWS) {
        int some = t->some.count - p < ROWS ? t->some.count - p : ROWS;
        if (l) some = NAME(rows_of)(input, l->inputs, NULL, p, t->some.count, rows);
        for (int first = 0; first < outputs; first += COLUMNS) {
            const int columns = outputs - first < COLUMNS ? outputs - first : COLUMNS;
            const float *scale = l->scale + first, *shift = l->shift + first;
            NAME(sums)(l, rows, &here, first, columns, sums);
            for (int r = 0; r < some; r++)
                for (int n = 0; n < columns; n += LANES) {
                    const FLOATS v = TIMES_F(TO_FLOATS(LOAD(sums[r] + n)), LOAD_F(scale + n));
                    STORE_F(values[r] + first + n, SUM_F(v, LOAD_F(shift + n)));
                }
        }
        for (int r = 0; r < some; r++) {
            const float *v = values[r];
            int32_t *mean = t->mean + (size_t)(p + r) * size;
            uint8_t *index = t->index + (size_t)(p + r) * size;
            int c = 0;
            for (; !linear && c + LANES <= size; c += LANES) {
                STORE(mean + c, TO_WHOLE(FLOORED(LOAD_F(v + c))));
                const FLOATS scale = SUM_F(LOAD_F(v + size + c), LOAD_F(prior + c));
                STORE_BYTES(index + c, TRUNCATED(BETWEEN_F(scale, 0.0f, SCALES - 1.0f)));
            }
            for (; c < size; c++) {
                const double value = v[c] + (linear ? linear[(p + r) * 4 + c] * (UNITS / 512.0) : 0);
                const float scale = v[size + c] + prior[c], low = scale > 0.0f ? scale : 0.0f;
                mean[c] = (int32_t)floor(value);
                index[c] = (uint8_t)(int32_t)(low < SCALES - 1 ? low : SCALES - 1);
            }
        }
    }
}

/* floor(127 u / (128 + |u|) + 1/2) + 128 of `count` latents, by the float32 operations of the page.
 */
static void NAME(compand)(const int32_t *u, int count, uint8_t *to)
{
    int i = 0;
    for (; i + LANES <= count; i += LANES) {
        const FLOATS v = TO_FLOATS(WITHIN(LOAD(u + i), COMPAND_REACH));
        const FLOATS size = SUM_F(SIZE_F(v), EVERY_FLOAT(8 * UNITS));
        const FLOATS q = OVER_F(TIMES_F(v, EVERY_FLOAT(127.0f)), size);
        const VECTOR whole = TO_WHOLE(FLOORED(SUM_F(q, EVERY_FLOAT(0.5f))));
        STORE_BYTES(to + i, ADD(whole, EVERYWHERE(128)));
    }
    for (; i < count; i++) {
        const int32_t near = u[i] < -COMPAND_REACH  ? -COMPAND_REACH
                             : u[i] > COMPAND_REACH ? COMPAND_REACH
                                                    : u[i];
        const float v = (float)near;
        const float q = v * 127.0f / (fabsf(v) + 8 * UNITS) + 0.5f;
        const int32_t down = (int32_t)q;
        to[i] = (uint8_t)(down - (q < (float)down) + 128);
    }
}

/* Read the symbols of the pass `some`, whose means and indexes are set: means become latents, in
 * their place and in the grids. */
static int NAME(read)(tile *t, int group)
{
    const tables *tabs = &t->net->tables;
    const int size = SIZES[group], start = STARTS[group], all = t->some.count * size;
    /* Four parts side by side: one counter of one part would have to wait for itself. */
    int32_t counts[PARTS][SCALES] = {{0}}, at[PARTS][SCALES], from[SCALES + 1];
    const int part = all / PARTS;
    for (int i = 0; i < part; i++)
        for (int q = 0; q < PARTS; q++) counts[q][t->index[q * part + i]]++;
    for (int i = PARTS * part; i < all; i++) counts[PARTS - 1][t->index[i]]++;
    from[0] = 0;
    for (int i = 0; i < SCALES; i++) {
        from[i + 1] = from[i];
        for (int q = 0; q < PARTS; q++) {
            at[q][i] = from[i + 1];
            if (i >= tabs->silent) from[i + 1] += counts[q][i];
        }
    }
    if (from[SCALES]) {
        /* Silent ones go where others, or nobody, will be written: order has room for all. */
        for (int i = 0; i < tabs->silent; i++)
            for (int q = 0; q < PARTS; q++) at[q][i] = all;
        for (int i = 0; i < part; i++)
            for (int q = 0; q < PARTS; q++) {
                const int k = q * part + i, table = t->index[k];
                t->order[at[q][table]] = k;
                at[q][table] += table >= tabs->silent;
            }
        for (int k = PARTS * part; k < all; k++) {
            const int table = t->index[k];
            t->order[at[PARTS - 1][table]] = k;
            at[PARTS - 1][table] += table >= tabs->silent;
        }
        int escapes = 0;
        range source = t->source;
        for (int table = tabs->silent; table < SCALES; table++) {
            const int count = tabs->count[table], reach = count / 2;
            const uint32_t *edges = tabs->edges + tabs->offset[table];
            for (int i = from[table]; i < from[table + 1]; i++) {
                const int k = next_symbol(&source, edges, count), where = t->order[i];
                if (k == reach) continue;
                if (k < 0) return FAILED;
                t->mean[where] += UNITS * (k - reach);
                /* Over what was read of the order already. */
                if (k == 0) t->order[escapes++] = ~where;
                else if (k == 2 * reach) t->order[escapes++] = where;
            }
        }
        for (int i = 0; i < escapes; i++) {
            const int32_t beyond = next_number(&source), where = t->order[i];
            if (beyond < 0) return FAILED;
            if (where < 0) t->mean[~where] -= UNITS * beyond;
            else t->mean[where] += UNITS * beyond;
        }
        t->source = source;
    }
    uint8_t *grid = group < GROUPS - 1 ? t->early + start : t->late;
    for (int p = 0; p < t->some.count; p++) {
        const size_t cell = t->some.cell[p];
        int32_t *u = t->latents + (size_t)t->some.place[p] * CHANNELS + start;
        uint8_t *to = grid + cell * EARLY;
        memcpy(u, t->mean + (size_t)p * size, size * sizeof *u);
        NAME(compand)(u, size, to);
        if (group == 0)
            for (int c = 0; c < size; c++) {
                const int32_t v = (u[c] + UNITS / 2) >> 4;
                t->whole[cell * 4 + c] =
                    v < -LINEAR_REACH ? -LINEAR_REACH : v > LINEAR_REACH ? LINEAR_REACH : v;
            }
    }
    return DONE;
}

static int NAME(walk_coarse)(tile *t)
{
    const float *bias = t->biases;
    for (int number = 0; number <= COARSE; number++) {
        t->some.count = 0;
        add_pass(t, &t->some, in_coarse, number);
        const coarse *net = &t->net->coarse[number ? number - 1 : 0];
        if (number == 0) {
            NAME(parameters)(t, 0, NULL, NULL, NULL);
        } else if (t->some.count) {
            ptrdiff_t taps[MOST_TAPS], bytes[MOST_TAPS];
            const ptrdiff_t here = 0;
            for (int k = 0; k < net->first.taps; k++) {
                taps[k] = net->row[k] * t->wide + net->column[k];
                bytes[k] = taps[k] * EARLY;
            }
            NAME(hidden)(&net->first, t->early, EARLY, t->some.cell, bytes, t->some.count, bias,
                         NULL, t->one, NULL);
            NAME(hidden)(&net->second, t->one, net->second.inputs, NULL, &here, t->some.count,
                         NULL, NULL, t->two, NULL);
            for (int p = 0; p < t->some.count; p++) {
                int32_t *sums = t->linear + 4 * p;
                memset(sums, 0, 4 * sizeof *sums);
                for (int k = 0; k < net->first.taps; k++) {
                    const int32_t *whole = t->whole + (t->some.cell[p] + taps[k]) * 4;
                    const int32_t *weight = net->linear + 16 * k;
                    for (int i = 0; i < 4; i++)
                        for (int c = 0; c < 4; c++) sums[c] += whole[i] * weight[4 * i + c];
                }
            }
            NAME(parameters)(t, 0, &net->head, t->two, t->linear);
        }
        if (number) bias += net->first.outputs;
        if (t->some.count && NAME(read)(t, 0)) return FAILED;
    }
    return DONE;
}

static int NAME(walk_fine)(tile *t, int group, const float *bias)
{
    const fine *net = &t->net->fine[group - 1];
    const int width = net->first.outputs, count = t->all.count;
    ptrdiff_t square[9], before[9], plus[4];
    const ptrdiff_t here = 0;
    for (int k = 0; k < 9; k++) {
        const ptrdiff_t tap = (k / 3 - 1) * t->wide + k % 3 - 1;
        square[k] = tap * width;
        before[k] = tap * EARLY;
    }
    plus[0] = -(ptrdiff_t)t->wide * EARLY, plus[1] = -EARLY, plus[2] = EARLY;
    plus[3] = (ptrdiff_t)t->wide * EARLY;
    memset(t->hidden, 0, t->cells * width);
    NAME(hidden)(&net->first, t->early, EARLY, t->all.cell, before, count, bias, NULL, t->hidden,
                 t->all.cell);
    NAME(hidden)(&net->second, t->hidden, width, t->all.cell, square, count, NULL, NULL,
                 t->context, NULL);
    const uint8_t *mine = group < GROUPS - 1 ? t->early + STARTS[group] : t->late;
    const uint8_t *context = t->context;
    for (int number = 0; number < 2; number++) {
        t->some.count = 0;
        add_pass(t, &t->some, in_checker, number);
        const layer *last = number ? &net->others : &net->anchors;
        const uint8_t *input = context;
        if (number) {
            NAME(hidden)(&net->neighbours, mine, EARLY, t->some.cell, plus, t->some.count, NULL,
                         context, t->one, NULL);
            NAME(hidden)(&net->third, t->one, net->third.inputs, NULL, &here, t->some.count, NULL,
                         NULL, t->two, NULL);
            input = t->two;
        }
        NAME(parameters)(t, group, last, input, NULL);
        if (NAME(read)(t, group)) return FAILED;
        context += (size_t)t->some.count * width;
    }
    return DONE;
}

static int NAME(walk)(tile *t, int coded)
{
    memset(t->early, 128, t->cells * EARLY);
    memset(t->late, 128, t->cells * EARLY);
    memset(t->whole, 0, t->cells * 4 * sizeof(int32_t));
    add_pass(t, &t->all, in_checker, 0);
    add_pass(t, &t->all, in_checker, 1);
    if (coded & 1 && NAME(walk_coarse)(t)) return FAILED;
    const float *bias = t->biases;
    for (int i = 0; i < COARSE; i++) bias += t->net->coarse[i].first.outputs;
    for (int group = 1; group < GROUPS; group++) {
        if (coded >> group & 1 && NAME(walk_fine)(t, group, bias)) return FAILED;
        bias += t->net->fine[group - 1].first.outputs;
    }
    return DONE;
}
