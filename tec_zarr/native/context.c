/* The context network: laid out for a kernel, and the kernels.
 *
 * Inputs are at most 127 and weights are of 8 bits. The first hidden layer is clipped to 0 .. 127,
 * the second to 0 .. 255. Kernels that add products in 16 bits check that the weights allow it.
 */
#include "context.h"

#include <stdlib.h>

#if defined(__x86_64__) || defined(__i386__)
#define X86 1
#include <cpuid.h>
#include <immintrin.h>
#define FOR(what) __attribute__((target(what)))
#elif defined(__aarch64__) && !defined(_WIN32)
#define ARM 1
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#elif defined(__wasm_simd128__)
#include <wasm_simd128.h>
#endif

#define HALF 3       /* fours of inputs of the first layer that narrow kernels add in 16 bits */
#define MOST_LOG 120 /* the logarithm of MOST_SUM */

typedef struct {
    const char *name;
    Evaluate *evaluate;
    TakeLogs *take_logs;
    int (*here)(void);
    int wide;   /* units in a vector; where two vectors are packed to one, its halves alternate */
    int narrow; /* whether it adds products in 16 bits */
} Kernel;

static int32_t clipped(int32_t value, int32_t most) {
    return value < 0 ? 0 : value > most ? most : value;
}

#if defined(X86) || defined(ARM)
static inline const uint8_t *four_of(const uint8_t *still, const uint8_t *scan, int q) {
    return q < STILL_INPUTS / 4 ? still + 4 * q : scan;
}
#endif

/* ---- any processor */

static int always(void) { return 1; }

static void take_logs_plain(const Net *net, const int16_t *sums, size_t count, uint8_t *out) {
    for (size_t i = 0; i < count; i++) out[i] = net->log[sums[i]];
}

/* sums += products of two inputs and their weights. A sum of two products fits into 16 bits, so that
 * compilers make vectors of as many units as they can. */
static inline void add_two(int32_t *sums, const int16_t (*weights)[HIDDEN], int16_t a, int16_t b) {
    if (!(a | b)) return;
#ifdef __wasm_simd128__ /* has products of two and two numbers, added: the weights lie in pairs */
    const v128_t two = wasm_i32x4_splat(a | b << 16);
    const int16_t *of_unit = *weights;
    for (int i = 0; i < HIDDEN; i += 4, of_unit += 8)
        wasm_v128_store(sums + i, wasm_i32x4_add(wasm_v128_load(sums + i),
                                                 wasm_i32x4_dot_i16x8(two, wasm_v128_load(of_unit))));
#else
    for (int i = 0; i < HIDDEN; i++) sums[i] += (int16_t)(weights[0][i] * a + weights[1][i] * b);
#endif
}

/* Where the weight of an input for a unit lies among those that add_two takes. */
static int wide_at(int input, int unit) {
#ifdef __wasm_simd128__
    return (input / 2 * HIDDEN + unit) * 2 + input % 2;
#else
    return input * HIDDEN + unit;
#endif
}

static void evaluate_plain(const Net *net, const uint8_t (*still)[STILL_INPUTS],
                           const uint8_t (*scan)[SCAN_INPUTS], int count, uint8_t *out) {
    for (int n = 0; n < count; n++) {
        int32_t sums[HIDDEN];
        int16_t one[HIDDEN];
        memcpy(sums, net->base, sizeof sums);
        for (int j = 0; j < STILL_INPUTS; j += 2) add_two(sums, net->wide_first + j, still[n][j], still[n][j + 1]);
        for (int j = 0; j < SCAN_INPUTS; j += 2)
            add_two(sums, net->wide_first + STILL_INPUTS + j, scan[n][j], scan[n][j + 1]);
        for (int i = 0; i < HIDDEN; i++) one[i] = (int16_t)clipped(sums[i] >> net->shifts[0], 127);
        memcpy(sums, net->second_bias, sizeof sums);
        for (int j = 0; j < HIDDEN; j += 2) add_two(sums, net->wide_second + j, one[j], one[j + 1]);
        int32_t sum = net->last_bias;
        for (int i = 0; i < HIDDEN; i++) sum += net->last[i] * clipped(sums[i] >> net->shifts[1], 255);
        out[n] = (uint8_t)clipped(sum >> net->shifts[2], INDEXES - 1);
    }
}

/* ---- x86 */

#ifdef X86
static unsigned enabled(void) { /* registers that the operating system saves */
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return 0;
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return a;
}

static int has_sse41(void) {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c >> 9 & 1) && (c >> 19 & 1);
}

static int has_avx2(void) {
    unsigned a, b, c, d;
    return (enabled() & 6) == 6 && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b >> 5 & 1);
}

static int has_vnni(void) { /* AVX-512 F, BW, VL and VNNI */
    unsigned a, b, c, d;
    return (enabled() & 0xe6) == 0xe6 && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b >> 16 & 1) &&
           (b >> 30 & 1) && (b >> 31 & 1) && (c >> 11 & 1);
}

static inline int32_t at4(const uint8_t *x) {
    int32_t four;
    memcpy(&four, x, 4);
    return four;
}

FOR("sse4.1") static void take_logs_sse41(const Net *net, const int16_t *sums, size_t count, uint8_t *out) {
    __m128i table[4];
    for (int j = 0; j < 4; j++) table[j] = _mm_loadu_si128((const __m128i *)(const void *)(net->log + 16 * j));
    size_t i = 0;
    for (; i + 16 <= count; i += 16) {
        __m128i low = _mm_loadu_si128((const __m128i *)(const void *)(sums + i));
        __m128i high = _mm_loadu_si128((const __m128i *)(const void *)(sums + i + 8));
        __m128i n = _mm_packus_epi16(low, high), logs; /* larger sums become 255 */
        if (_mm_testz_si128(n, _mm_set1_epi8((char)0xf0))) logs = _mm_shuffle_epi8(table[0], n);
        else if (_mm_testz_si128(n, _mm_set1_epi8((char)0xc0))) {
            logs = _mm_setzero_si128();
            for (int j = 0; j < 4; j++) { /* of n - 16 j other than 0 .. 15 the shuffle makes 0 */
                __m128i at = _mm_adds_epu8(_mm_sub_epi8(n, _mm_set1_epi8((char)(16 * j))), _mm_set1_epi8(0x70));
                logs = _mm_or_si128(logs, _mm_shuffle_epi8(table[j], at));
            }
        } else {
            take_logs_plain(net, sums + i, 16, out + i);
            continue;
        }
        _mm_storeu_si128((__m128i *)(void *)(out + i), logs);
    }
    take_logs_plain(net, sums + i, count - i, out + i);
}

/* Add products of 16 units and `fours` times four inputs, at most four, which are added in 16 bits. */
FOR("sse4.1") static inline void add_fours_sse41(__m128i *t, const int8_t (*weights)[HIDDEN][4], int part,
                                                 const uint8_t *x, int fours) {
    const __m128i ones = _mm_set1_epi16(1);
    const __m128i *at = (const __m128i *)(const void *)weights[0][part];
    __m128i four = _mm_set1_epi32(at4(x));
#define TIMES(i) _mm_maddubs_epi16(four, _mm_loadu_si128(at + i))
    __m128i a = TIMES(0), b = TIMES(1), c = TIMES(2), d = TIMES(3);
    for (int q = 1; q < fours; q++) {
        at += HIDDEN / 4, four = _mm_set1_epi32(at4(x + 4 * q));
        a = _mm_add_epi16(a, TIMES(0)), b = _mm_add_epi16(b, TIMES(1));
        c = _mm_add_epi16(c, TIMES(2)), d = _mm_add_epi16(d, TIMES(3));
    }
#undef TIMES
    t[0] = _mm_add_epi32(t[0], _mm_madd_epi16(a, ones)), t[1] = _mm_add_epi32(t[1], _mm_madd_epi16(b, ones));
    t[2] = _mm_add_epi32(t[2], _mm_madd_epi16(c, ones)), t[3] = _mm_add_epi32(t[3], _mm_madd_epi16(d, ones));
}

FOR("sse4.1") static void evaluate_sse41(const Net *net, const uint8_t (*still)[STILL_INPUTS],
    const uint8_t (*scan)[SCAN_INPUTS], int count, uint8_t *out) {
    const __m128i first_shift = _mm_cvtsi32_si128(net->shifts[0]);
    const __m128i second_shift = _mm_cvtsi32_si128(net->shifts[1]);
    for (int n = 0; n < count; n++) {
        _Alignas(16) uint8_t x[STILL_INPUTS + SCAN_INPUTS], one[HIDDEN];
        __m128i t[4], sum = _mm_setzero_si128();
        memcpy(x, still[n], STILL_INPUTS), memcpy(x + STILL_INPUTS, scan[n], SCAN_INPUTS);
        for (int part = 0; part < HIDDEN; part += 16) {
            for (int i = 0; i < 4; i++) t[i] = _mm_loadu_si128((const __m128i *)(net->base + part + 4 * i));
            add_fours_sse41(t, net->first, part, x, HALF);
            add_fours_sse41(t, net->first + HALF, part, x + 4 * HALF, QUADS - HALF);
            for (int i = 0; i < 4; i++) t[i] = _mm_sra_epi32(t[i], first_shift);
            t[0] = _mm_packus_epi16(_mm_packs_epi32(t[0], t[1]), _mm_packs_epi32(t[2], t[3]));
            _mm_store_si128((__m128i *)(one + part), _mm_min_epu8(t[0], _mm_set1_epi8(127)));
        }
        for (int part = 0; part < HIDDEN; part += 16) {
            const __m128i *last = (const __m128i *)(net->last + part);
            for (int i = 0; i < 4; i++)
                t[i] = _mm_loadu_si128((const __m128i *)(net->second_bias + part + 4 * i));
            add_fours_sse41(t, net->second, part, one, 4);
            add_fours_sse41(t, net->second + 4, part, one + 16, 4);
            for (int i = 0; i < 4; i++) {
                t[i] = _mm_max_epi32(_mm_sra_epi32(t[i], second_shift), _mm_setzero_si128());
                t[i] = _mm_min_epi32(t[i], _mm_set1_epi32(255)); /* so that its high half is 0 */
                sum = _mm_add_epi32(sum, _mm_madd_epi16(t[i], _mm_loadu_si128(last + i)));
            }
        }
        sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
        sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
        int32_t index = (_mm_cvtsi128_si32(sum) + net->last_bias) >> net->shifts[2];
        out[n] = (uint8_t)clipped(index, INDEXES - 1);
    }
}

FOR("avx2") static void evaluate_avx2(const Net *net, const uint8_t (*still)[STILL_INPUTS],
    const uint8_t (*scan)[SCAN_INPUTS], int count, uint8_t *out) {
    const __m256i ones = _mm256_set1_epi16(1);
    const __m256i most = _mm256_set1_epi8(127), full = _mm256_set1_epi16(255);
    const __m128i first_shift = _mm_cvtsi32_si128(net->shifts[0]);
    const __m128i second_shift = _mm_cvtsi32_si128(net->shifts[1]);
    const __m256i *first = (const __m256i *)net->first, *second = (const __m256i *)net->second;
    const __m256i *base = (const __m256i *)net->base, *bias = (const __m256i *)net->second_bias;
    const __m256i *last = (const __m256i *)net->last;
#define LOAD(at) _mm256_loadu_si256(at)
    const __m256i last_low = _mm256_packs_epi32(LOAD(last), LOAD(last + 1));
    const __m256i last_high = _mm256_packs_epi32(LOAD(last + 2), LOAD(last + 3));
    for (int n = 0; n < count; n++) {
        _Alignas(32) uint8_t one[HIDDEN];
        __m256i s[4], t[4];
        for (int i = 0; i < 4; i++) t[i] = LOAD(base + i);
        for (int q = 0; q < QUADS; q++) {
            __m256i four = _mm256_set1_epi32(at4(four_of(still[n], scan[n], q)));
            for (int i = 0; i < 4; i++) {
                __m256i more = _mm256_maddubs_epi16(four, LOAD(first + 4 * q + i));
                s[i] = q % HALF ? _mm256_add_epi16(s[i], more) : more;
            }
            if (q % HALF == HALF - 1 || q == QUADS - 1)
                for (int i = 0; i < 4; i++) t[i] = _mm256_add_epi32(t[i], _mm256_madd_epi16(s[i], ones));
        }
        for (int i = 0; i < 4; i++) s[i] = _mm256_sra_epi32(t[i], first_shift);
        s[0] = _mm256_packus_epi16(_mm256_packs_epi32(s[0], s[1]), _mm256_packs_epi32(s[2], s[3]));
        _mm256_store_si256((__m256i *)one, _mm256_min_epu8(s[0], most));
        for (int i = 0; i < 4; i++) t[i] = LOAD(bias + i);
        for (int q = 0; q < HIDDEN / 4; q++) {
            __m256i four = _mm256_set1_epi32(at4(one + 4 * q));
            for (int i = 0; i < 4; i++) {
                __m256i more = _mm256_maddubs_epi16(four, LOAD(second + 4 * q + i));
                s[i] = q % 4 ? _mm256_add_epi16(s[i], more) : more;
            }
            if (q % 4 == 3)
                for (int i = 0; i < 4; i++) t[i] = _mm256_add_epi32(t[i], _mm256_madd_epi16(s[i], ones));
        }
        for (int i = 0; i < 4; i++) t[i] = _mm256_sra_epi32(t[i], second_shift);
        __m256i low = _mm256_min_epu16(_mm256_packus_epi32(t[0], t[1]), full);
        __m256i high = _mm256_min_epu16(_mm256_packus_epi32(t[2], t[3]), full);
        low = _mm256_add_epi32(_mm256_madd_epi16(low, last_low), _mm256_madd_epi16(high, last_high));
        __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
        sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
        sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
        int32_t index = (_mm_cvtsi128_si32(sum) + net->last_bias) >> net->shifts[2];
        out[n] = (uint8_t)clipped(index, INDEXES - 1);
    }
#undef LOAD
}

#if defined(__clang__) && __clang_major__ >= 18 && __clang_major__ < 22
#define VNNI "avx512f,avx512bw,avx512vl,avx512vnni,evex512"
#else
#define VNNI "avx512f,avx512bw,avx512vl,avx512vnni"
#endif

FOR(VNNI)
static void evaluate_vnni(const Net *net, const uint8_t (*still)[STILL_INPUTS],
    const uint8_t (*scan)[SCAN_INPUTS], int count, uint8_t *out) {
    const __m128i first_shift = _mm_cvtsi32_si128(net->shifts[0]);
    const __m128i second_shift = _mm_cvtsi32_si128(net->shifts[1]);
    const __m512i zero = _mm512_setzero_si512(), full = _mm512_set1_epi32(255);
    const __m128i most = _mm_set1_epi8(127);
    __m512i first[QUADS][2], base[2], bias[2], last[2];
    for (int i = 0; i < 2; i++) {
        for (int q = 0; q < QUADS; q++) first[q][i] = _mm512_loadu_si512(net->first[q][16 * i]);
        base[i] = _mm512_loadu_si512(net->base + 16 * i);
        bias[i] = _mm512_loadu_si512(net->second_bias + 16 * i);
        last[i] = _mm512_loadu_si512(net->last + 16 * i);
    }
    for (int n = 0; n < count; n++) {
        _Alignas(16) uint8_t one[HIDDEN];
        __m512i sum = zero;
        for (int i = 0; i < 2; i++) {
            __m512i s = base[i];
            for (int q = 0; q < QUADS; q++)
                s = _mm512_dpbusd_epi32(s, _mm512_set1_epi32(at4(four_of(still[n], scan[n], q))), first[q][i]);
            s = _mm512_max_epi32(_mm512_sra_epi32(s, first_shift), zero);
            _mm_store_si128((__m128i *)one + i, _mm_min_epu8(_mm512_cvtusepi32_epi8(s), most));
        }
        for (int i = 0; i < 2; i++) {
            __m512i s = bias[i], t = zero;
            for (int q = 0; q < HIDDEN / 4; q += 2) {
                s = _mm512_dpbusd_epi32(s, _mm512_set1_epi32(at4(one + 4 * q)),
                                        _mm512_loadu_si512(net->second[q][16 * i]));
                t = _mm512_dpbusd_epi32(t, _mm512_set1_epi32(at4(one + 4 * q + 4)),
                                        _mm512_loadu_si512(net->second[q + 1][16 * i]));
            }
            s = _mm512_sra_epi32(_mm512_add_epi32(s, t), second_shift);
            s = _mm512_min_epi32(_mm512_max_epi32(s, zero), full);
            sum = _mm512_add_epi32(sum, _mm512_madd_epi16(s, last[i])); /* high halves of s are 0 */
        }
        int32_t index = (_mm512_reduce_add_epi32(sum) + net->last_bias) >> net->shifts[2];
        out[n] = (uint8_t)clipped(index, INDEXES - 1);
    }
}
#endif

/* ---- ARM */

#ifdef ARM
#if defined(__clang__)
#define DOT __attribute__((target("dotprod")))
#else
#define DOT __attribute__((target("arch=armv8.2-a+dotprod")))
#endif

static int has_dot(void) {
#if defined(__linux__)
    return getauxval(AT_HWCAP) >> 20 & 1; /* HWCAP_ASIMDDP */
#elif defined(__APPLE__)
    return 1;
#else
    return 0;
#endif
}

DOT static void evaluate_dot(const Net *net, const uint8_t (*still)[STILL_INPUTS],
    const uint8_t (*scan)[SCAN_INPUTS], int count, uint8_t *out) {
    const int32x4_t first_shift = vdupq_n_s32(-net->shifts[0]);
    const int32x4_t second_shift = vdupq_n_s32(-net->shifts[1]);
    const int32x4_t zero = vdupq_n_s32(0), full = vdupq_n_s32(255), most = vdupq_n_s32(127);
    for (int n = 0; n < count; n++) {
        _Alignas(16) int8_t one[HIDDEN];
        int32x4_t s[8], sum = zero;
        for (int i = 0; i < 8; i++) s[i] = vld1q_s32(net->base + 4 * i);
        for (int q = 0; q < QUADS; q++) {
            int8x16_t four = vreinterpretq_s8_u32(vld1q_dup_u32((const uint32_t *)(const void *)four_of(still[n], scan[n], q)));
            for (int i = 0; i < 8; i++) s[i] = vdotq_s32(s[i], vld1q_s8(net->first[q][4 * i]), four);
        }
        for (int i = 0; i < 8; i++)
            s[i] = vminq_s32(vmaxq_s32(vshlq_s32(s[i], first_shift), zero), most);
        for (int i = 0; i < 2; i++) {
            int16x8_t low = vcombine_s16(vmovn_s32(s[4 * i]), vmovn_s32(s[4 * i + 1]));
            int16x8_t high = vcombine_s16(vmovn_s32(s[4 * i + 2]), vmovn_s32(s[4 * i + 3]));
            vst1q_s8(one + 16 * i, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
        }
        for (int i = 0; i < 8; i++) s[i] = vld1q_s32(net->second_bias + 4 * i);
        for (int q = 0; q < HIDDEN / 4; q++) {
            int8x16_t four = vreinterpretq_s8_u32(vld1q_dup_u32((const uint32_t *)(const void *)(one + 4 * q)));
            for (int i = 0; i < 8; i++) s[i] = vdotq_s32(s[i], vld1q_s8(net->second[q][4 * i]), four);
        }
        for (int i = 0; i < 8; i++) {
            int32x4_t two = vminq_s32(vmaxq_s32(vshlq_s32(s[i], second_shift), zero), full);
            sum = vmlaq_s32(sum, two, vld1q_s32(net->last + 4 * i));
        }
        int32_t index = (vaddvq_s32(sum) + net->last_bias) >> net->shifts[2];
        out[n] = (uint8_t)clipped(index, INDEXES - 1);
    }
}
#endif

/* ---- choice and layout */

static const Kernel kernels[] = { /* the best first */
#ifdef X86
    {"vnni", evaluate_vnni, take_logs_sse41, has_vnni, 16, 0},
    {"avx2", evaluate_avx2, take_logs_sse41, has_avx2, 8, 1},
    {"sse41", evaluate_sse41, take_logs_sse41, has_sse41, 4, 1},
#endif
#ifdef ARM
    {"dot", evaluate_dot, take_logs_plain, has_dot, 4, 0},
#endif
    {"plain", evaluate_plain, take_logs_plain, always, 4, 0},
};
#define KERNELS ((int)(sizeof kernels / sizeof *kernels))

const char *tec_kernel(int number, int *here) {
    if (number < 0 || number >= KERNELS) return NULL;
    *here = kernels[number].here();
    return kernels[number].name;
}

/* Sums of magnitudes are for the network round(10 log2(1 + n)), up to n = 4095: entry i is the
 * smallest n with the value i. */
static const uint16_t log_steps[] = {
    0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6,
    7, 7, 8, 8, 9, 10, 10, 11, 12, 13, 14, 15, 16, 17, 19, 20, 21, 23, 25, 26, 28, 30, 33,
    35, 38, 40, 43, 46, 50, 53, 57, 61, 66, 71, 76, 81, 87, 93, 100, 107, 115, 123, 132,
    142, 152, 163, 174, 187, 200, 215, 230, 247, 265, 284, 304, 326, 349, 374, 401, 430,
    461, 494, 530, 568, 608, 652, 699, 749, 803, 861, 922, 989, 1060, 1136, 1217, 1305,
    1398, 1499, 1606, 1722, 1845, 1978, 2120, 2272, 2435, 2610, 2797, 2998, 3213, 3444,
    3691, 3956, MOST_SUM + 1,
};

static void fill_log(uint8_t *log) {
    for (int i = 0; log_steps[i] <= MOST_SUM; i++)
        memset(log + log_steps[i], i, (size_t)(log_steps[i + 1] - log_steps[i]));
}

/* The input of the network at each place of a value's inputs: still ones first. */
static int input_at(int place) {
    return place < STILL_INPUTS ? SCAN_INPUTS + still_at[place] : place - STILL_INPUTS;
}

/* Whether the sums that narrow kernels add in 16 bits stay within them: of `fours` times four
 * inputs, `together` fours at a time, the first two of each four and the last two. */
static int fits(const int8_t (*weights)[HIDDEN][4], int fours, int together, int32_t most) {
    for (int i = 0; i < HIDDEN; i++)
        for (int pair = 0; pair < 4; pair += 2) {
            int32_t up = 0, down = 0;
            for (int q = 0; q < fours; q++) {
                if (q % together == 0) up = down = 0;
                for (int j = pair; j < pair + 2; j++) {
                    int32_t w = most * weights[q][i][j];
                    if (w > 0) up += w;
                    else down += w;
                }
                if (up > INT16_MAX || down < INT16_MIN) return 0;
            }
        }
    return 1;
}

/* Deal the units of the first layer out over the four sums of 16 bits that a unit of the second has,
 * those with the largest weights first, each to where the largest sum remains least. */
static void deal_units(const Context *c, int *deal) {
    int heavy[HIDDEN], sorted[HIDDEN], count[4] = {0};
    int32_t sums[4][2][HIDDEN] = {0}; /* of positive and of negative weights */
    for (int j = 0; j < HIDDEN; j++) {
        heavy[j] = 0;
        for (int i = 0; i < HIDDEN; i++)
            if (abs(c->second[i][j]) > heavy[j]) heavy[j] = abs(c->second[i][j]);
        int at = j;
        for (; at && heavy[sorted[at - 1]] < heavy[j]; at--) sorted[at] = sorted[at - 1];
        sorted[at] = j;
    }
    for (int n = 0; n < HIDDEN; n++) {
        int best = -1;
        int32_t least = INT32_MAX;
        for (int sum = 0; sum < 4; sum++) {
            int32_t largest = 0;
            for (int i = 0; i < HIDDEN; i++) {
                int32_t w = c->second[i][sorted[n]], with = sums[sum][w < 0][i] + abs(w);
                if (with > largest) largest = with;
            }
            if (count[sum] < HIDDEN / 4 && largest < least) best = sum, least = largest;
        }
        for (int i = 0; i < HIDDEN; i++) {
            int32_t w = c->second[i][sorted[n]];
            sums[best][w < 0][i] += abs(w);
        }
        /* A sum has two neighbours of each of the four fours of its half. */
        deal[best / 2 * 16 + count[best] / 2 * 4 + best % 2 * 2 + count[best] % 2] = sorted[n];
        count[best]++;
    }
}

static void lay_out(Net *net, const Context *c, const Kernel *kernel) {
    int deal[HIDDEN];
    deal_units(c, deal);
    for (int p = 0; p < HIDDEN; p++) {
        /* Where a vector has two halves of 128 bits, packing puts their units 16 apart. */
        int place = kernel->wide == 8 ? p / 8 * 4 + p % 8 / 4 * 16 + p % 4 : p;
        int unit = deal[place];
        net->first_bias[p] = c->first_bias[unit];
        for (int j = 0; j < FIXED_INPUTS; j++) net->fixed[j][p] = c->first[SCAN_INPUTS + STILL_INPUTS + j][unit];
        for (int q = 0; q < QUADS; q++)
            for (int j = 0; j < 4; j++) {
                int16_t weight = c->first[input_at(4 * q + j)][unit];
                ((int16_t *)net->wide_first)[wide_at(4 * q + j, p)] = weight, net->first[q][p][j] = (int8_t)weight;
            }
        for (int q = 0; q < HIDDEN / 4; q++)
            for (int j = 0; j < 4; j++) {
                int16_t weight = c->second[p][deal[4 * q + j]];
                ((int16_t *)net->wide_second)[wide_at(4 * q + j, p)] = weight, net->second[q][p][j] = (int8_t)weight;
            }
        /* The second layer has half of the first one's activations. */
        net->second_bias[p] = c->second_bias[p] >> 1;
        net->last[p] = c->last[p];
    }
    net->last_bias = c->last_bias;
    net->shifts[0] = c->shifts[0] + 1, net->shifts[1] = c->shifts[1] - 1, net->shifts[2] = c->shifts[2];
    net->evaluate = kernel->evaluate, net->take_logs = kernel->take_logs;
}

void tec_net(Net *net, const Context *context) {
    const char *wanted = getenv("TEC_NATIVE");
    fill_log(net->log);
    for (int i = 0; i < KERNELS; i++) {
        const Kernel *kernel = kernels + i;
        if (i < KERNELS - 1 && ((wanted && *wanted && strcmp(wanted, kernel->name)) || !kernel->here()))
            continue;
        lay_out(net, context, kernel);
        if (!kernel->narrow || (fits(net->first, QUADS, HALF, MOST_LOG) && fits(net->second, HIDDEN / 4, 4, 127)))
            return;
    }
}

void tec_net_plane(Net *net, const uint8_t fixed[FIXED_INPUTS]) {
    memcpy(net->base, net->first_bias, sizeof net->base);
    for (int j = 0; j < FIXED_INPUTS; j++)
        for (int p = 0; p < HIDDEN; p++) net->base[p] += net->fixed[j][p] * fixed[j];
}
