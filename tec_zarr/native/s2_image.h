/* From latents to pixels, for one instruction set; included by s2.c. */

/* The correction's hidden units at all places, into p->hidden (places, width). */
static void NAME(correct)(const picture *p)
{
    const pixels *net = p->net;
    const int width = net->one.outputs, count = p->rows * p->columns;
    const int wide = p->columns + 2;
    const ptrdiff_t here = 0;
    ptrdiff_t square[9];
    for (int k = 0; k < 9; k++) square[k] = ((k / 3 - 1) * wide + k % 3 - 1) * (ptrdiff_t)width;
    layer first = net->first; /* of the channels that are coded */
    first.inputs = p->channels;
    first.start = net->starts + (size_t)p->last * width;
    for (int i = 0; i < count; i++)
        NAME(compand)(p->latents + (size_t)i * CHANNELS, p->channels,
                      p->bytes + (size_t)i * p->channels);
    memset(p->one, 0, p->cells * width);
    memset(p->two, 0, p->cells * width);
    NAME(hidden)(&first, p->bytes, p->channels, NULL, &here, count, p->bias, NULL, p->hidden, NULL);
    for (int row = 0; row < p->rows; row++)
        memcpy(p->one + ((size_t)(row + 1) * wide + 1) * width,
               p->hidden + (size_t)row * p->columns * width, (size_t)p->columns * width);
    NAME(hidden)(&net->one, p->one, width, p->cell, square, count, NULL, NULL, p->two, p->cell);
    NAME(hidden)(&net->two, p->two, width, p->cell, square, count, NULL, p->hidden, p->three, NULL);
}

/* Coefficients of a row of places in half DN, int32 (columns, channels). */
static void NAME(coefficients)(const picture *p, int row)
{
    const layer *l = &p->net->last;
    const ptrdiff_t here = 0;
    const size_t start = (size_t)row * p->columns;
    int32_t sums[ROWS][COLUMNS];
    const uint8_t *rows[ROWS];
    for (int from = 0; from < p->columns; from += ROWS) {
        const int some = NAME(rows_of)(p->three + start * l->inputs, l->inputs, NULL, from,
                                       p->columns, rows);
        for (int first = 0; first < p->channels; first += COLUMNS) {
            const int left = (p->channels + 15) / 16 * 16 - first;
            const int columns = left < COLUMNS ? left : COLUMNS;
            const int wanted = p->channels - first < columns ? p->channels - first : columns;
            const float *scale = l->scale + first, *shift = l->shift + first;
            const double *step = p->steps + first;
            NAME(sums)(l, rows, &here, first, columns, sums);
            for (int r = 0; r < some; r++) {
                const int32_t *u = p->latents + (start + from + r) * CHANNELS + first;
                int32_t *w = p->coefficients + (size_t)(from + r) * CHANNELS + first;
                int c = 0;
#ifdef AVX512
                const __m512i reach = _mm512_set1_epi32(LATENT_REACH);
                const __m512i least = _mm512_set1_epi32(-LATENT_REACH);
                for (; c + 16 <= wanted; c += 16) {
                    __m512 more = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums[r] + c));
                    more = _mm512_mul_ps(more, _mm512_loadu_ps(scale + c));
                    more = _mm512_add_ps(more, _mm512_loadu_ps(shift + c));
                    more = _mm512_roundscale_ps(more, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
                    __m512i near = _mm512_loadu_si512(u + c);
                    near = _mm512_max_epi32(_mm512_min_epi32(near, reach), least);
                    near = _mm512_add_epi32(_mm512_slli_epi32(near, 2), _mm512_cvtps_epi32(more));
                    for (int half = 0; half < 2; half++) {
                        const __m256i eight = half ? _mm512_extracti64x4_epi64(near, 1)
                                                   : _mm512_castsi512_si256(near);
                        __m512d x = _mm512_cvtepi32_pd(eight);
                        x = _mm512_mul_pd(x, _mm512_loadu_pd(step + c + 8 * half));
                        x = _mm512_add_pd(_mm512_mul_pd(x, _mm512_set1_pd(1.0 / 8192.0)),
                                          _mm512_set1_pd(0.5));
                        x = _mm512_roundscale_pd(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
                        x = _mm512_max_pd(x, _mm512_set1_pd(-COEFFICIENT_REACH));
                        x = _mm512_min_pd(x, _mm512_set1_pd(COEFFICIENT_REACH));
                        _mm256_storeu_si256((void *)(w + c + 8 * half), _mm512_cvtpd_epi32(x));
                    }
                }
#endif
                for (; c < wanted; c++) {
                    const int32_t near = u[c] < -LATENT_REACH  ? -LATENT_REACH
                                         : u[c] > LATENT_REACH ? LATENT_REACH
                                                               : u[c];
                    const int32_t more = (int32_t)floorf((float)sums[r][c] * scale[c] + shift[c]);
                    const double x = floor((4 * near + more) * step[c] * (1.0 / 8192.0) + 0.5);
                    w[c] = x < -COEFFICIENT_REACH  ? -COEFFICIENT_REACH
                           : x > COEFFICIENT_REACH ? COEFFICIENT_REACH
                                                   : (int32_t)x;
                }
            }
        }
    }
}

/* Samples of one block and component, int32 (64), by 64-bit sums: any coefficients. */
static void NAME(slow_samples)(const picture *p, int component, const int32_t *w, int32_t *out)
{
    const pixels *net = p->net;
    for (int s = 0; s < 64; s++) {
        int64_t sum = 1 << 13;
        for (int i = net->begin[component]; i < net->begin[component + 1]; i++) {
            if (net->channel[i] >= p->channels) break;
            const int at = i - net->begin[component];
            const int16_t *m = net->matrix + net->at[component] * 128;
            sum += (int64_t)w[net->channel[i]] * m[(at / 2 * 64 + s) * 2 + at % 2];
        }
        sum >>= 14;
        out[s] = (int32_t)(sum < -SAMPLE_REACH ? -SAMPLE_REACH
                           : sum > SAMPLE_REACH ? SAMPLE_REACH
                                                : sum);
    }
}

/* Samples (4, 64) of four blocks: pairs of coefficients (pairs, 4, 2) times pairs of rows of the
 * matrix, low digits and, of few pairs, high ones. */
static void NAME(products)(const int16_t *matrix, const int32_t (*low)[4], int pairs,
                           const int32_t (*high)[4], int few, int32_t block[4][64])
{
    {
        VECTOR above[4][64 / LANES], below[4][64 / LANES];
        for (int r = 0; r < 4; r++)
            for (int v = 0; v < 64 / LANES; v++) {
                above[r][v] = EVERYWHERE(0);
                below[r][v] = EVERYWHERE(1 << 13);
            }
        for (int i = 0; i < few; i++)
            for (int v = 0; v < 64 / LANES; v++) {
                const VECTOR m = LOAD(matrix + 128 * i + 2 * LANES * v);
                for (int r = 0; r < 4; r++)
                    above[r][v] = PAIRS(above[r][v], EVERYWHERE(high[i][r]), m);
            }
        for (int i = 0; i < pairs; i++)
            for (int v = 0; v < 64 / LANES; v++) {
                const VECTOR m = LOAD(matrix + 128 * i + 2 * LANES * v);
                for (int r = 0; r < 4; r++)
                    below[r][v] = PAIRS(below[r][v], EVERYWHERE(low[i][r]), m);
            }
        for (int r = 0; r < 4; r++)
            for (int v = 0; v < 64 / LANES; v++) {
                const VECTOR x = DOWN(ADD(above[r][v], DOWN(below[r][v], 12)), 2);
                STORE(block[r] + LANES * v, WITHIN(x, SAMPLE_REACH));
            }
    }
}

/* Four rows of int16 (count, a multiple of 8) side by side: (count, 4). */
static void NAME(side_by_side)(const int16_t (*rows)[CHANNELS], int count, int16_t (*out)[4])
{
    for (int i = 0; i < count; i += 8) {
        __m128i x[4];
        for (int r = 0; r < 4; r++) x[r] = _mm_loadu_si128((const void *)(rows[r] + i));
        const __m128i a = _mm_unpacklo_epi16(x[0], x[1]), b = _mm_unpackhi_epi16(x[0], x[1]);
        const __m128i c = _mm_unpacklo_epi16(x[2], x[3]), d = _mm_unpackhi_epi16(x[2], x[3]);
        _mm_storeu_si128((void *)out[i], _mm_unpacklo_epi32(a, c));
        _mm_storeu_si128((void *)out[i + 2], _mm_unpackhi_epi32(a, c));
        _mm_storeu_si128((void *)out[i + 4], _mm_unpacklo_epi32(b, d));
        _mm_storeu_si128((void *)out[i + 6], _mm_unpackhi_epi32(b, d));
    }
}

/* Pairs (count / 2, 4, 2) of `digits` (channels, 4) of the first `count` channels of a list. */
static void NAME(paired)(const int16_t (*digits)[4], const int32_t *channel, int count,
                         int32_t (*out)[4])
{
    for (int i = 0; i < count; i += 2) {
        const __m128i one = _mm_loadl_epi64((const void *)digits[channel[i]]);
        const __m128i two = i + 1 < count ? _mm_loadl_epi64((const void *)digits[channel[i + 1]])
                                          : _mm_setzero_si128();
        _mm_storeu_si128((void *)out[i / 2], _mm_unpacklo_epi16(one, two));
    }
}

/* Samples of the blocks of a row, of each component, into a strip (components, 8, width).
 *
 * In 32 bits, with low digits of the coefficients of the first groups, which are large, and high
 * ones apart; in 64 where that does not fit. */
static void NAME(samples)(const picture *p, int32_t *strip)
{
    const pixels *net = p->net;
    const size_t width = (size_t)p->columns * 8;
    int16_t rows[4][CHANNELS], digits[CHANNELS][4], tops[FEW][4];
    int32_t low[CHANNELS / 2][4], high[FEW / 2][4], block[4][64];
    memset(rows, 0, sizeof rows);
    for (int from = 0; from < p->columns; from += 4) {
        const int some = p->columns - from < 4 ? p->columns - from : 4;
        int fits[4];
        for (int r = 0; r < 4; r++) {
            const int32_t *w =
                p->coefficients + (size_t)(from + (r < some ? r : some - 1)) * CHANNELS;
            int32_t total = 0, largest = 0;
            for (int c = 0; c < FEW && c < p->channels; c++) {
                const int32_t top = (w[c] + 2048) >> 12, value = w[c] - top * 4096;
                tops[c][r] = (int16_t)top;
                rows[r][c] = (int16_t)value;
                total += abs(value);
            }
            for (int c = FEW; c < p->channels; c++) { /* none is larger than 2^22 */
                const int32_t size = abs(w[c]);
                rows[r][c] = (int16_t)w[c];
                largest = size > largest ? size : largest;
                total += size;
            }
            fits[r] = largest < 32768 && total <= net->most;
        }
        NAME(side_by_side)((const int16_t (*)[CHANNELS])rows, (p->channels + 7) / 8 * 8, digits);
        for (int k = 0; k < p->used; k++) {
            const int32_t *channel = net->channel + net->begin[k];
            const int all = net->begin[k + 1] - net->begin[k];
            int few = 0, count = 0;
            while (count < all && channel[count] < p->channels) count++;
            while (few < count && channel[few] < FEW) few++;
            NAME(paired)((const int16_t (*)[4])digits, channel, count, low);
            NAME(paired)((const int16_t (*)[4])tops, channel, few, high);
            NAME(products)(net->matrix + net->at[k] * 128, (const int32_t (*)[4])low,
                           (count + 1) / 2, (const int32_t (*)[4])high, (few + 1) / 2, block);
            for (int r = 0; r < some; r++) {
                if (!fits[r])
                    NAME(slow_samples)(p, k, p->coefficients + (size_t)(from + r) * CHANNELS,
                                       block[r]);
                int32_t *to = strip + (size_t)k * 8 * width + 8 * (from + r);
                for (int y = 0; y < 8; y++) memcpy(to + y * width, block[r] + 8 * y, 32);
            }
        }
    }
}

/* Mix the last four rows of a strip with the first four of the next one. */
static void NAME(mix_rows)(const picture *p, int32_t *upper, int32_t *lower)
{
    const size_t width = (size_t)p->columns * 8;
    for (int k = 0; k < p->used; k++) {
        int32_t *rows[8];
        for (int i = 0; i < 4; i++) {
            rows[i] = upper + ((size_t)k * 8 + 4 + i) * width;
            rows[4 + i] = lower + ((size_t)k * 8 + i) * width;
        }
        size_t x = 0;
        for (; x + LANES <= width; x += LANES) {
            VECTOR in[8];
            for (int i = 0; i < 8; i++) in[i] = LOAD(rows[i] + x);
            for (int j = 0; j < 8; j++) {
                VECTOR sum = EVERYWHERE(1 << 10);
                for (int i = 0; i < 8; i++)
                    sum = ADD(sum, TIMES(EVERYWHERE(p->net->overlap[8 * j + i]), in[i]));
                STORE(rows[j] + x, DOWN(sum, 11));
            }
        }
        for (; x < width; x++) {
            uint32_t in[8];
            for (int i = 0; i < 8; i++) in[i] = rows[i][x];
            for (int j = 0; j < 8; j++) {
                uint32_t sum = 1u << 10;
                for (int i = 0; i < 8; i++) sum += (uint32_t)p->net->overlap[8 * j + i] * in[i];
                rows[j][x] = (int32_t)sum >> 11;
            }
        }
    }
}

/* Mix the columns on both sides of every inner boundary of a strip. */
static void NAME(mix_columns)(const picture *p, int32_t *strip)
{
    const size_t width = (size_t)p->columns * 8;
    __m256i factors[8];
    for (int i = 0; i < 8; i++)
        factors[i] = _mm256_loadu_si256((const void *)(p->net->across + 8 * i));
    for (int row = 0; row < p->used * 8; row++) {
        int32_t *x = strip + (size_t)row * width + 4;
        for (int b = 0; b + 1 < p->columns; b++, x += 8) {
            __m256i sum = _mm256_set1_epi32(1 << 10);
            for (int i = 0; i < 8; i++)
                sum = _mm256_add_epi32(sum, _mm256_mullo_epi32(factors[i], _mm256_set1_epi32(x[i])));
            _mm256_storeu_si256((void *)x, _mm256_srai_epi32(sum, 11));
        }
    }
}

/* Two vectors of whole DN of each band, from column `x` of a row of a strip on. */
static inline __attribute__((always_inline)) void
NAME(bands_of)(const picture *p, const int32_t *in, size_t next, size_t to, const int used)
{
    const size_t plane = (size_t)p->height * p->width;
    VECTOR left[MOST_COMPONENTS], right[MOST_COMPONENTS];
    for (int k = 0; k < used; k++) {
        left[k] = LOAD(in + k * next);
        right[k] = LOAD(in + k * next + LANES);
    }
    for (int c = 0; c < p->bands; c++, to += plane) {
        const int32_t *basis = p->basis + (size_t)c * used;
        VECTOR one = EVERYWHERE(p->mean[c]), two = one;
        for (int k = 0; k < used; k++) {
            const VECTOR factor = EVERYWHERE(basis[k]);
            one = ADD(one, TIMES(factor, left[k]));
            two = ADD(two, TIMES(factor, right[k]));
        }
        one = DOWN(one, 13), two = DOWN(two, 13);
        if (p->out) {
            STORE_F(p->out + to, TO_FLOATS(one));
            STORE_F(p->out + to + LANES, TO_FLOATS(two));
        } else {
            STORE_SHORTS(p->whole + to, one);
            STORE_SHORTS(p->whole + to + LANES, two);
        }
    }
}

/* Bands of a strip's rows: whole DN. */
static void NAME(bands)(const picture *p, const int32_t *strip, int row)
{
    const size_t width = (size_t)p->columns * 8, plane = (size_t)p->height * p->width;
    const size_t next = 8 * width;
    for (int y = 0; y < 8 && row * 8 + y < p->height; y++) {
        const int32_t *in = strip + y * width;
        const size_t start = ((size_t)row * 8 + y) * p->width;
        int x = 0;
        for (; x + 2 * LANES <= p->width; x += 2 * LANES)
            switch (p->used) {
#define OF(n) case n: NAME(bands_of)(p, in + x, next, start + x, n); break;
            OF(1) OF(2) OF(3) OF(4) OF(5) OF(6) OF(7) OF(8) OF(9) OF(10) OF(11)
            default: NAME(bands_of)(p, in + x, next, start + x, MOST_COMPONENTS);
#undef OF
            }
        for (; x < p->width; x++)
            for (int c = 0; c < p->bands; c++) {
                uint32_t sum = p->mean[c];
                for (int k = 0; k < p->used; k++)
                    sum += (uint32_t)p->basis[c * p->used + k] * (uint32_t)in[k * next + x];
                const int32_t value = (int32_t)sum >> 13;
                const size_t to = start + c * plane + x;
                if (p->out) p->out[to] = (float)value;
                else p->whole[to] = value < 0 ? 0 : value > UINT16_MAX ? UINT16_MAX : value;
            }
    }
}

static void NAME(draw)(const picture *p)
{
    int32_t *upper = p->strips, *lower = p->strips + p->strip;
    NAME(correct)(p);
    for (int row = 0; row < p->rows; row++) {
        NAME(coefficients)(p, row);
        NAME(samples)(p, lower);
        if (row) {
            NAME(mix_rows)(p, upper, lower);
            NAME(mix_columns)(p, upper);
            NAME(bands)(p, upper, row - 1);
        }
        int32_t *other = upper;
        upper = lower;
        lower = other;
    }
    NAME(mix_columns)(p, upper);
    NAME(bands)(p, upper, p->rows - 1);
}

#undef LANES
#undef VECTOR
#undef LOAD
#undef STORE
#undef EVERYWHERE
#undef ADD
#undef TIMES
#undef DOWN
#undef WITHIN
#undef PAIRS
#undef FLOATS
#undef TO_FLOATS
#undef TO_WHOLE
#undef FLOORED
#undef EVERY_FLOAT
#undef SUM_F
#undef TIMES_F
#undef OVER_F
#undef SIZE_F
#undef TRUNCATED
#undef LOAD_F
#undef STORE_F
#undef BYTES_F
#undef BETWEEN_F
#undef STORE_BYTES
#undef STORE_SHORTS
